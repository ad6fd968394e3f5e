"""What one node is made of: the image store, the backends behind their targets, the composite over them, and what it tells of itself."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from zlayer_driver import __version__, backends, fastpath
from zlayer_driver.composite import Composite, OnFallback
from zlayer_driver.config import PluginConfig
from zlayer_driver.contract import Backend, CanSweep
from zlayer_driver.errors import CacheError, DriverError
from zlayer_driver.image.registry import Client
from zlayer_driver.image.store import ImageStore
from zlayer_driver.image.values import MIB, Limits
from zlayer_driver.model import IMAGES_ATTRIBUTE, OS, Fingerprint, Health, ImageFacts, Target

PREFIX = "driver.zlayer"
_log = logging.getLogger(__name__)
_LONGEST_COLLECTION_PAUSE_S = 60.0
_MOST_IMAGES_BYTES = 16 << 10
_RUNS = {  # operating systems of the images that each target runs; the primary runs its node's own
    Target.VZ: OS.DARWIN,
    Target.VZ_LINUX: OS.LINUX,
    Target.DELEGATE: OS.LINUX,
}


def _image_store(config: PluginConfig, native_os: OS) -> ImageStore:
    """The store of a state directory, with what the operator says of registries and of images' sizes."""
    client = Client(
        insecure=config.insecure_registries,
        mirrors={registry: [host.strip() for host in hosts.split(",")] for registry, hosts in config.registry_mirrors.items()},
        auth_file=Path(config.registry_auth_file) if config.registry_auth_file else None,
        ca_file=Path(config.registry_ca_file) if config.registry_ca_file else None,
    )
    limits = Limits(layers=config.image_max_layers, layer_bytes=config.image_max_layer_mb * MIB, entries=config.image_max_layer_entries)
    root, allow = Path(config.state_dir, "images"), config.allow_image_devices
    return ImageStore(root, client=client, os=native_os, limits=limits, allow_devices=allow)


async def _probed(backend: Backend) -> Fingerprint:
    """A disk in trouble makes its backend unhealthy; the others still have their say."""
    try:
        return await backend.probe()
    except OSError as error:
        return Fingerprint(Health.UNHEALTHY, f"cannot be probed: {error.filename or backend.name}: {error.strerror}")


class Node:
    """Made from the operator's config alone; touches the machine only when a method is called. ``native_os`` is this system's by default."""

    def __init__(self, config: PluginConfig, *, native_os: OS | None = None, on_fallback: OnFallback | None = None) -> None:
        self.config = config
        self.native_os = native_os or backends.native_os()
        self._collector: asyncio.Task[None] | None = None
        self.store = _image_store(config, self.native_os)
        self.caches: Sequence[Path] = (self.store.cache_path, *map(Path, config.caches))
        self._open_caches: dict[Path, fastpath.BlobCache] = {}
        self._opening = threading.Lock()
        self.backends = backends.build(backends.Context(config, self.store, self.native_os))
        self.composite = Composite(
            self.backends, native_os=self.native_os, facts=self.image_facts, fallback=config.fallback, on_fallback=on_fallback
        )

    def image_facts(self, image: str) -> ImageFacts:
        """What the local caches say of an image; never the network. May be called from any thread."""
        with self._opening:
            caches = [self._kept(path) for path in self.caches]
        return fastpath.image_facts(image, caches)

    def _kept(self, path: Path) -> fastpath.BlobCache | Path:
        """An open cache, once its file is there: opening costs a hundred times what a look-up does."""
        if path not in self._open_caches:
            try:
                self._open_caches[path] = fastpath.BlobCache(path)
            except CacheError:
                return path
        return self._open_caches[path]

    async def sweep(self, *, orphans_after_s: float | None = None) -> None:
        """Finishes what a killed predecessor left half made or half removed. From then on, images that idle for too long are removed.

        With ``orphans_after_s``, containers that nobody has are removed too: see `CanSweep`. A backend in trouble is left for another time.
        """
        for target, backend in self.backends.items():
            if isinstance(backend, CanSweep):
                try:
                    await backend.sweep(orphans_after_s=orphans_after_s)
                except (DriverError, OSError) as error:
                    _log.warning("what an earlier driver left on target %s cannot be looked for: %s", target, error)
        if self.config.image_gc_delay and self._collector is None:
            self._collector = asyncio.create_task(self._collect_images(self.config.image_gc_delay))

    async def pin_images(self) -> None:
        """Has the images that the operator keeps stay whoever prunes this state directory."""
        try:
            await asyncio.to_thread(self.store.pin, self.config.image_gc_keep)
        except OSError as error:
            _log.warning("people's prune commands do not know image_gc_keep: %s", error)

    async def _collect_images(self, delay_s: float) -> None:
        while True:
            await asyncio.sleep(min(delay_s / 4, _LONGEST_COLLECTION_PAUSE_S))
            try:
                gone = await self.store.remove_unused(idle_s=delay_s, keep=self.config.image_gc_keep)
            except (DriverError, OSError) as error:  # a disk or cache in trouble now must not end all later collections
                _log.warning("unused images cannot be removed yet: %s", error)
            else:
                for image in gone.deleted:
                    _log.info("removed image %s, which no task has used for %g s", image, delay_s)

    async def probe(self) -> dict[Target, Fingerprint]:
        """Each target's own fingerprint; attribute keys are the backend's."""
        found = await asyncio.gather(*map(_probed, self.backends.values()))
        return dict(zip(self.backends, found, strict=True))

    async def fingerprint(self) -> Fingerprint:
        """The node's fingerprint: healthy as long as its primary is."""
        probes = await self.probe()
        attributes: dict[str, str | int | bool] = {
            f"{PREFIX}.version": __version__,
            f"{PREFIX}.native_os": self.native_os,
            f"{PREFIX}.fastpath": fastpath.IMPLEMENTATION,
        }
        for target, probe in probes.items():
            name = self.backends[target].name
            if probe.health is Health.HEALTHY:
                attributes[f"{PREFIX}.target.{target}"] = name
                attributes[f"{PREFIX}.os.{_RUNS.get(target, self.native_os)}"] = True
            attributes |= {f"{PREFIX}.{name}.{key}": value for key, value in probe.attributes.items()}
        attributes[IMAGES_ATTRIBUTE] = await self._images()
        primary = probes[Target.PRIMARY]
        return Fingerprint(primary.health, primary.description, attributes)

    async def _images(self) -> str:
        """What placement goes by: as many references, by name, as fit into what a node should cost the servers."""
        try:
            records = await self.composite.list_images()
        except (DriverError, OSError):  # what ails the store is told where it is used
            return ""
        names = sorted(record.reference for record in records)
        text = ",".join([*names, ""])[:_MOST_IMAGES_BYTES]
        return text.rpartition(",")[0]

    async def close(self) -> None:
        if self._collector is not None:
            self._collector.cancel()
            await asyncio.gather(self._collector, return_exceptions=True)
        for cache in self._open_caches.values():
            cache.close()
        await self.store.close()
