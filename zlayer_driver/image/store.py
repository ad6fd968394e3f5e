"""The images of one state directory: pulled, imported, listed, removed, and handed to backends as stacks of layer directories.

Several processes may use one directory, and any of them may be killed at any moment: layers and records come into being atomically, and
what a dead process left is collected when the store is next opened (see `layers` and `cache`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from zlayer_driver import fastpath
from zlayer_driver.errors import ConfigError, NotFound
from zlayer_driver.host.mounts import Overlay
from zlayer_driver.image.cache import MANIFEST, ImageCache
from zlayer_driver.image.layers import LayerStore
from zlayer_driver.image.manifest import host_arch, parse_config, parse_manifest
from zlayer_driver.image.policy import must_fetch
from zlayer_driver.image.pull import Puller, Wanted
from zlayer_driver.image.registry import Client
from zlayer_driver.image.sources import open_source
from zlayer_driver.image.stream import digest_of
from zlayer_driver.image.values import Image, Limits, Malformed, Manifest, Source, translated
from zlayer_driver.model import Auth, ImageRecord, PullPolicy, PullProgress, PullSource, Report
from zlayer_driver.readings import Pruned
from zlayer_driver.waiting import in_thread

_SETTLE_AFTER_S = 30.0
_LEFTOVER_AGE_S = 86_400.0  # after which whole layers of an unfinished pull go
_QUIET_NS = 1_000_000_000  # a file that was written to later than so long ago may be written to again under the same time
_OF_TASKS = "localhost/of-a-task"
_Key = tuple[str, Auth | str | None]  # canonical reference, and the credentials or local source used


@dataclass(slots=True)
class _Flight:
    """A pull under way and those who wait for it."""

    task: asyncio.Task[None]
    reports: list[Report]
    waiters: int = 0


class ImageStore:
    """``os`` is what its images must be for, by its OCI name. ``client`` is closed with the store.

    The directory is made and swept at first use, not when the store is built.
    """

    def __init__(
        self,
        root: Path,
        *,
        client: Client | None = None,
        os: str = "linux",
        limits: Limits | None = None,
        allow_devices: bool = False,
    ) -> None:
        self.cache_path = root / "blobs.sqlite"
        self._pins = root / "pinned"  # one reference a line
        self._limits = limits or Limits()
        self._layers = LayerStore(root)
        self._cache = ImageCache(self.cache_path)
        self._client = client or Client()
        self._puller = Puller(self._layers, self._cache, Wanted(os, host_arch()), self._limits, allow_devices=allow_devices)
        self._tells = (self.cache_path, self.cache_path.with_name(f"{self.cache_path.name}-wal"), root / "l")
        self._listed: tuple[object, list[ImageRecord]] = None, []
        self._flights: dict[_Key, _Flight] = {}
        self._opened = self._swept = False
        self._settling: asyncio.Task[None] | None = None

    async def pull(self, image: str, *, policy: PullPolicy, auth: Auth | None, report: Report | None = None) -> Image:
        """The image, from here or from its registry as ``policy`` says. Pulls of one image share one download."""
        reference = fastpath.canonical(image)
        await self._sweep()
        if await must_fetch(reference, policy, PullSource.LOCAL_FIRST, self._is_here, report):
            origin = await self._client.source(fastpath.parse(image), auth)
            await self._join((reference, auth), lambda tell: self._puller.pull(origin, reference, tell), report)
        return self.get(reference)

    async def _is_here(self, reference: str) -> bool:
        """Whoever asks is about to use it: its idle time starts anew."""
        try:
            self.get(reference)
        except NotFound:
            return False
        await asyncio.to_thread(self._cache.touch, reference)
        return True

    async def import_archive(self, source: str, reference: str | None = None, *, report: Report | None = None) -> Image:
        """An image from a directory or file (see `sources`), under ``reference`` or else under its own name."""
        await self._sweep()
        async with open_source(source, self._limits) as local:
            if not (reference or local.name):
                raise ConfigError(f"{source} does not name its image", hint="give a reference for it")
            return await self._import(local, reference or local.name, source, report)

    async def import_of_task(self, source: str, root: Path | None, *, report: Report | None = None) -> Image:
        """An image that a task brings, from inside ``root``. Content names it: a name of the task's choice could be another image's."""
        await self._sweep()
        async with open_source(source, self._limits, root) as local:
            manifest, _ = await local.root(self._limits)
            return await self._import(local, f"{_OF_TASKS}@{digest_of(manifest)}", source, report)

    async def _import(self, local: Source, reference: str, source: str, report: Report | None) -> Image:
        name = fastpath.canonical(reference)
        fastpath.parse(name)
        await self._join((name, source), lambda tell: self._puller.pull(local, name, tell), report)
        return self.get(name)

    def get(self, image: str) -> Image:
        """An image that is whole and here; `NotFound` else."""
        reference = fastpath.canonical(image)
        self._open()
        raw = self._cache.get(f"{MANIFEST}{reference}")
        if raw is None:
            raise NotFound(reference, "this node does not have the image", hint="pull it")
        try:
            manifest = parse_manifest(raw)
            config_raw = self._cache.get(manifest.config.digest) if isinstance(manifest, Manifest) else None
            if not isinstance(manifest, Manifest) or config_raw is None or digest_of(config_raw) != manifest.config.digest:
                raise NotFound(reference, "its record in the blob cache is not whole", hint="pull it again")
            config = parse_config(config_raw)
        except Malformed as error:
            raise NotFound(reference, f"its record in the blob cache is damaged: {error}", hint="pull it again") from error
        layers = self._layers.find_all(config.diff_ids)
        if layers is None:
            raise NotFound(reference, "only its manifest is here, not all its layers", hint="pull it")
        size = len(raw) + manifest.config.size + sum(layer.size for layer in manifest.layers)
        return Image(reference, digest_of(raw), config, layers, size)

    def list(self) -> list[ImageRecord]:
        """The images that `get` has, sorted by reference. They are read again when records or layers have changed: agents ask all the time."""
        state = self._state()
        if state is None or state != self._listed[0]:
            self._listed = state, [ImageRecord(image.reference, image.digest, image.size_bytes) for image in self._images()]
        return self._listed[1].copy()

    def _state(self) -> object:
        """What changes with any record or layer, whoever changes it; ``None`` while that may go unseen."""
        found: list[os.stat_result] = []
        for path in self._tells:
            with suppress(FileNotFoundError):
                found.append(path.stat())
        if max((each.st_mtime_ns for each in found), default=0) > time.time_ns() - _QUIET_NS:
            return None
        return [(each.st_ino, each.st_mtime_ns, each.st_size) for each in found]

    def hold(self) -> AbstractContextManager[None]:
        """While held, no layer is removed: for the time between `get` and a mount. Mounted layers are safe by themselves."""
        self._open()
        return self._layers.hold()

    def shown(self, overlay: Overlay) -> Sequence[Path]:
        """The layers here that a mount shows, bottom first."""
        self._open()
        return self._layers.shown(overlay)

    async def remove(self, image: str) -> None:
        """Forgets an image, and deletes what only it needed; layers that are mounted stay until the next `prune`."""
        reference = fastpath.canonical(image)
        self._open()
        if not await asyncio.to_thread(self._cache.remove_image, reference, _config_digest):
            raise NotFound(reference, "this node does not have the image", hint="see `zlayer-driver images`")
        await self.prune()

    async def prune(self, *, min_age_s: float = 0.0) -> Pruned:
        """Deletes layers of at least that age that no image needs, unless they are mounted or a pull is under way."""
        self._open()
        return await asyncio.to_thread(self._layers.collect, self._needed, min_age_s=min_age_s)

    async def remove_unused(self, *, idle_s: float = 0.0, keep: Collection[str] = ()) -> Pruned:
        """Deletes images that nothing runs from and that nobody has asked for in ``idle_s``, and layers as `prune`.

        What is pinned stays, and for this call so does what is in ``keep``.
        """
        self._open()
        gone = await asyncio.to_thread(self._remove_unused, idle_s, {fastpath.canonical(image) for image in (*keep, *self._pinned())})
        return Pruned(gone, (await self.prune()).reclaimed_bytes)

    def pin(self, images: Collection[str]) -> None:
        """Keeps these images, and none that were pinned before, from `remove_unused`, also in processes that do not know the operator's config."""
        self._open()
        fresh = self._pins.with_suffix(f".{os.getpid()}")
        fresh.write_text("".join(f"{image}\n" for image in images))
        fresh.rename(self._pins)

    def _pinned(self) -> Sequence[str]:
        return self._pins.read_text().splitlines() if self._pins.exists() else ()

    async def tag(self, source: str, target: str) -> Image:
        """Gives an image a further reference."""
        image = self.get(source)
        reference = fastpath.canonical(target)
        fastpath.parse(reference)
        await asyncio.to_thread(self._cache.copy_image, image.reference, reference)
        return self.get(reference)

    async def settle(self) -> None:
        """Returns when what was pulled so far is on the disk: from then on a power cut costs none of it."""
        self._open()
        await in_thread(self._layers.settle)

    async def close(self) -> None:
        """Ends pulls that are under way. Layers that are not settled yet stay marked as such, for whoever opens the directory next."""
        tasks = [flight.task for flight in self._flights.values()]
        if self._settling is not None:
            tasks.append(self._settling)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()
        self._puller.close()
        self._cache.close()

    def _open(self) -> None:
        if not self._opened:
            self._layers.open()
            self._opened = True

    async def _sweep(self) -> None:
        """Once per store: removes what processes left that died, but not at once what a pull that is tried again can use."""
        if not self._swept:
            self._swept = True
            await self.prune(min_age_s=_LEFTOVER_AGE_S)

    def _settle_soon(self) -> None:
        """Once for all pulls of a while: by then the kernel has written most by itself."""
        if self._settling is None or self._settling.done():
            self._settling = asyncio.create_task(self._settle_later())

    async def _settle_later(self) -> None:
        await asyncio.sleep(_SETTLE_AFTER_S)
        await self.settle()

    def _images(self) -> Iterator[Image]:
        self._open()
        for reference in self._cache.references():
            try:
                yield self.get(reference)
            except NotFound:
                continue  # known by its manifest only, as images for other platforms are

    def _needed(self) -> set[Path]:
        return {layer for image in self._images() for layer in image.layers}

    def _remove_unused(self, idle_s: float, keep: Collection[str]) -> tuple[str, ...]:
        mounted, gone = self._layers.mounted(), []
        for image in tuple(self._images()):
            if image.layers and mounted.issuperset(image.layers):
                self._cache.touch(image.reference)  # its idle time starts when it is last seen in use
                continue
            unused = image.reference not in keep and self._cache.idle(image.reference, idle_s)
            if unused and self._cache.remove_image(image.reference, _config_digest):
                gone.append(image.reference)
        return tuple(gone)

    async def _join(self, key: _Key, work: Callable[[Report], Awaitable[None]], report: Report | None) -> None:
        """Waits for the pull of ``key``, which is started if there is none. It ends early only if all its waiters are cancelled."""
        while (flight := self._flights.get(key)) is not None and flight.task.cancelling():
            await asyncio.wait([flight.task])  # all who wanted it are gone, and its end would be taken for this caller's
        if flight is None:
            reports: list[Report] = []
            flight = _Flight(asyncio.create_task(self._fly(key, work, reports)), reports)
            self._flights[key] = flight
        flight.waiters += 1
        if report is not None:
            flight.reports.append(report)
        try:
            await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if report is not None:
                flight.reports.remove(report)
            if not flight.waiters and not flight.task.done():
                flight.task.cancel()
                await asyncio.gather(flight.task, return_exceptions=True)

    async def _fly(self, key: _Key, work: Callable[[Report], Awaitable[None]], reports: Sequence[Report]) -> None:
        def tell(progress: PullProgress) -> None:
            for report in tuple(reports):
                report(progress)

        try:
            with translated(key[0]):
                await work(tell)
            self._settle_soon()
        finally:
            del self._flights[key]


def _config_digest(manifest: bytes) -> str:
    """Of a recorded manifest; empty if it cannot be read."""
    try:
        read = parse_manifest(manifest)
    except Malformed:
        return ""
    return read.config.digest if isinstance(read, Manifest) else ""
