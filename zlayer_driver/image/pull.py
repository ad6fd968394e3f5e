"""From a source to an image in the store: resolve, check the platform, unpack what is missing in parallel, then record it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from zlayer_driver.errors import WrongPlatform
from zlayer_driver.image.cache import ImageCache
from zlayer_driver.image.layers import LayerStore
from zlayer_driver.image.manifest import COMPRESSION, choose, host_arch, host_variant, parse_config, parse_manifest
from zlayer_driver.image.stream import Bridge, ahead, digest_of, hashed, inflated, verified
from zlayer_driver.image.unpack import Unpacked, unpack
from zlayer_driver.image.values import Descriptor, ImageConfig, Index, Limits, LowerNeeded, Malformed, Manifest, Source
from zlayer_driver.model import PullProgress, Report
from zlayer_driver.waiting import in_thread, until_done

T = TypeVar("T")
_Made = tuple[Path, Unpacked]
_PARALLEL_LAYERS = 3
_NESTED_INDEXES = 3


@dataclass(frozen=True, slots=True)
class Resolved:
    """An image whose manifest and config are here and checked, and whose layers may not be."""

    manifest: Manifest
    manifest_raw: bytes
    config: ImageConfig
    config_raw: bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """The platform that a store is for."""

    os: str
    arch: str


async def resolve(source: Source, wanted: Wanted, limits: Limits) -> Resolved:
    """Follows indexes down to the manifest for the platform, and reads the config."""
    raw, media_type = await source.root(limits)
    for _ in range(_NESTED_INDEXES):
        manifest = parse_manifest(raw, media_type, limits=limits)
        if isinstance(manifest, Manifest):
            break
        raw, media_type = await _chosen(source, manifest, wanted, limits)
    else:
        raise Malformed("indexes are nested too deep")
    config_raw = await _checked(source, manifest.config, limits.config_bytes)
    config = parse_config(config_raw)
    if len(config.diff_ids) != len(manifest.layers):
        raise Malformed(f"config has {len(config.diff_ids)} diff_ids for the manifest's {len(manifest.layers)} layers")
    return Resolved(manifest, raw, config, config_raw)


async def _chosen(source: Source, index: Index, wanted: Wanted, limits: Limits) -> tuple[bytes, str]:
    highest = host_variant() if wanted.arch == host_arch() else None
    entry = choose(index, wanted.os, wanted.arch, highest=highest)
    return await _checked(source, entry, limits.manifest_bytes), entry.media_type


async def _checked(source: Source, blob: Descriptor, limit: int) -> bytes:
    if blob.size > limit:
        raise Malformed(f"{blob.media_type} {blob.digest} has {blob.size} bytes, and {limit} are allowed")
    raw = await source.content(blob)
    if len(raw) != blob.size or digest_of(raw) != blob.digest:
        raise Malformed(f"{blob.media_type} {blob.digest} arrived with content of another size or digest")
    return raw


def check_platform(config: ImageConfig, wanted: Wanted, image: str) -> None:
    """`WrongPlatform` for another operating system. What the config leaves open is taken as fitting."""
    if config.os not in {wanted.os, ""}:
        raise WrongPlatform("this node", wanted.os, config.os, image)
    if config.arch not in {wanted.arch, ""}:
        raise Malformed(f"the image is for {config.os}/{config.arch}, and this node is {wanted.os}/{wanted.arch}")


@dataclass(frozen=True, slots=True)
class _Job:
    """One layer to bring. ``diff_ids`` are those of the layers up to it, bottom first."""

    source: Source
    blob: Descriptor
    diff_ids: Sequence[str]
    reference: str
    report: Report

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        done = 0
        async with aclosing(self.source.pieces(self.blob)) as pieces:
            async for piece in pieces:
                done += len(piece)
                self.report(PullProgress(self.reference, "download", self.blob.digest, done, self.blob.size))
                yield piece


class Puller:
    """Brings images into one store."""

    def __init__(self, layers: LayerStore, cache: ImageCache, wanted: Wanted, limits: Limits, *, allow_devices: bool) -> None:
        self._layers = layers
        self._cache = cache
        self._wanted = wanted
        self._limits = limits
        self._allow_devices = allow_devices
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._slots = asyncio.Semaphore(_PARALLEL_LAYERS)
        self._threads = ThreadPoolExecutor(_PARALLEL_LAYERS, thread_name_prefix="layer")

    async def pull(self, source: Source, reference: str, report: Report) -> None:
        """Layers first, the record last: what has a record is whole."""
        image = await resolve(source, self._wanted, self._limits)
        try:
            check_platform(image.config, self._wanted, reference)
        except WrongPlatform:
            await in_thread(self._record, reference, image)  # so that the choice of a target knows the OS from now on
            raise
        with self._layers.hold():
            async with AsyncExitStack() as unfinished:
                await self._fetch(source, image, reference, report, unfinished)
            await in_thread(self._record, reference, image)
        report(PullProgress(reference, "done"))

    def close(self) -> None:
        self._threads.shutdown(wait=True)

    def _record(self, reference: str, image: Resolved) -> None:
        self._cache.put_image(
            reference, (digest_of(image.manifest_raw), image.manifest_raw), (image.manifest.config.digest, image.config_raw)
        )

    async def _fetch(self, source: Source, image: Resolved, reference: str, report: Report, unfinished: AsyncExitStack) -> None:
        """All layers at once; then in order those that need to know the layers below, and those that only seemed to be here."""
        blobs, diff_ids = image.manifest.layers, image.config.diff_ids
        jobs = [_Job(source, blob, diff_ids[: number + 1], reference, report) for number, blob in enumerate(blobs)]
        made = await _together(self._bring(job, unfinished) for job in jobs)
        for job, layer in zip(jobs, made, strict=True):
            if self._layers.find_all(job.diff_ids) is None:
                await self._settle(job, layer, unfinished)

    async def _bring(self, job: _Job, unfinished: AsyncExitStack) -> _Made | None:
        """The layer in the making, if it cannot be kept before those below it are there."""
        lock = self._locks.setdefault(job.diff_ids[-1], asyncio.Lock())
        async with lock:
            if self._layers.has(job.diff_ids):
                return None
            try:
                made = await self._unpack(job, unfinished)
            except LowerNeeded:
                if len(job.diff_ids) == 1:
                    raise
                return None
            return None if await in_thread(self._layers.keep, *made, job.diff_ids) else made

    async def _settle(self, job: _Job, made: _Made | None, unfinished: AsyncExitStack) -> None:
        """Keeps a layer whose lower ones are there, unpacked again where it needs to see them."""
        if made is None or not await in_thread(self._layers.keep, *made, job.diff_ids):
            below = self._layers.find_all(job.diff_ids[:-1]) or ()
            made = await self._unpack(job, unfinished, below)
            await in_thread(self._layers.keep, *made, job.diff_ids)

    async def _unpack(self, job: _Job, unfinished: AsyncExitStack, below: Sequence[Path] = ()) -> _Made:
        """Runs the layer's worker thread; it has ended when this returns, also when cancelled."""
        making = self._layers.making()
        directory = making.__enter__()
        unfinished.push_async_callback(in_thread, making.__exit__, None, None, None)
        async with self._slots, aclosing(job.pieces()) as pieces:
            bridge = Bridge(pieces)
            work = asyncio.get_running_loop().run_in_executor(self._threads, self._unpack_in_thread, job, bridge, directory, below)
            try:
                unpacked = await asyncio.shield(work)
            finally:
                try:
                    await bridge.close()
                finally:
                    await until_done(work)
        job.report(PullProgress(job.reference, "unpack", job.blob.digest, job.blob.size, job.blob.size))
        return directory, unpacked

    def _unpack_in_thread(self, job: _Job, compressed: Iterable[bytes], directory: Path, below: Sequence[Path]) -> Unpacked:
        blob = inflated(verified(compressed, job.blob), COMPRESSION[job.blob.media_type], self._limits)
        with closing(ahead(blob)) as archive:
            pieces = hashed(archive, job.diff_ids[-1])
            return unpack(pieces, directory, limits=self._limits, allow_devices=self._allow_devices, below=below)


async def _together(steps: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results, in order. The first failure ends the others, and is raised once they have ended."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(step) for step in steps]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
