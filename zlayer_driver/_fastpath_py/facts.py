"""What local stores say of an image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from zlayer_driver._fastpath_py.caches import BlobCache, read_file
from zlayer_driver._fastpath_py.documents import MAX_DOCUMENT_BYTES, Unreadable, read_sidecar
from zlayer_driver._fastpath_py.references import sanitize
from zlayer_driver.errors import CacheBusy, CacheError
from zlayer_driver.model import OS, ImageFacts


def _sidecar_os(ref: str, caches: Sequence[str]) -> OS | None:
    name = sanitize(ref)
    if name in {"", ".", ".."}:
        return None
    for path in caches:
        raw = read_file(Path(path).parent / name / "metadata.json", MAX_DOCUMENT_BYTES)
        with suppress(Unreadable):
            found = read_sidecar(raw) if raw is not None else None
            if found is not None:
                return found
    return None


def _asked(cache: str | os.PathLike[str] | BlobCache, ref: str) -> tuple[ImageFacts, bool]:
    if isinstance(cache, BlobCache):
        return cache.facts_and_doubt(ref)
    with BlobCache(cache) as opened:
        return _asked(opened, ref)


def image_facts(ref: str, caches: Sequence[str | os.PathLike[str] | BlobCache]) -> ImageFacts:
    """What local stores say of an image: sidecars first (OS only), then the caches in order, each fact from the first that has it.

    A cache that cannot be read is passed over. `CacheBusy` only where no OS was found and a busy cache might have it.
    """
    paths = [cache.path if isinstance(cache, BlobCache) else os.fspath(cache) for cache in caches]
    os_ = _sidecar_os(ref, paths)
    marker = isolation = None
    os_open, isolation_open = os_ is None, True
    busy: CacheBusy | None = None
    for cache in caches:
        try:
            found, unreadable = _asked(cache, ref)
        except CacheError as error:
            busy = error if isinstance(error, CacheBusy) else busy
            continue
        marker = found.marker if marker is None else marker
        if os_open:
            os_, os_open = found.os, found.os is None and not unreadable
        if isolation_open:
            isolation, isolation_open = found.isolation, found.isolation is None and not unreadable
        if marker is not None and not os_open and not isolation_open:
            break
    if os_ is None and os_open and busy is not None:
        raise busy
    return ImageFacts(os_, marker, isolation)
