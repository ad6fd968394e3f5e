"""A handle on a blob cache of either format."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from zlayer_driver._fastpath_py.documents import Unreadable, read_config, read_manifest
from zlayer_driver._fastpath_py.redb import NotRedb, RedbStore
from zlayer_driver._fastpath_py.references import canonical
from zlayer_driver._fastpath_py.sqlite import MAX_BLOB_BYTES, NotSqlite, SqliteStore
from zlayer_driver.errors import CacheBusy, CacheError
from zlayer_driver.model import ImageFacts

T = TypeVar("T")

_SHA256 = re.compile("sha256:[0-9a-f]{64}")


class Store(Protocol):
    """One file format of a blob cache."""

    def row(self, key: str) -> bytes | None: ...

    def keys(self) -> list[str]: ...

    def close(self) -> None: ...


def read_file(path: Path, limit_bytes: int) -> bytes | None:
    """A regular file's content, ``None`` where there is none or it is larger; links and devices are not followed."""
    with suppress(OSError, ValueError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            return file.read() if stat.S_ISREG(found.st_mode) and found.st_size <= limit_bytes else None
    return None


def _database_file(path: Path) -> Path:
    if path.is_dir():
        names = (path / name for name in ("blob_cache.sqlite", "blob_cache.redb"))
        return next(filter(Path.exists, names), path)
    return path


def _spill_dir(path: Path) -> Path:
    dot = path.name.rfind(".")
    return path.with_name(f"{path.name[:dot] if dot > 0 else path.name}.blobs")


def _store(path: str) -> Store:
    """A reader for the file as its first bytes tell; SQLite looks first, as nobody else may open a database of its own."""
    try:
        return SqliteStore(path)
    except NotSqlite:
        try:
            return RedbStore(path)
        except NotRedb:
            raise CacheError(path, "it is no SQLite or redb file") from None


class BlobCache:
    """A read-only handle on a ZLayer blob cache (SQLite or redb, told by content); safe across threads and after fork.

    The handle follows its file: a replaced, grown or checkpointed file is read as it is at the call. Nothing is ever written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if "\0" in str(path):
            raise CacheError(str(path), "its name has a NUL")
        file = _database_file(Path(path))
        self.path = str(file)
        self._spill_dir = _spill_dir(file)
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._closed = False
        self._store = _store(self.path)

    @property
    def format(self) -> str:
        return "sqlite" if isinstance(self._store, SqliteStore) else "redb"

    def close(self) -> None:
        self._closed = True
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def get(self, key: str) -> bytes | None:
        """The blob under ``sha256:…`` or ``manifest:…``; what does not hash to its digest counts as absent."""
        with self._open():
            return self._get(key)

    def get_many(self, keys: Iterable[str]) -> list[bytes | None]:
        """The blobs under ``keys``, read from as few committed states as possible without holding a writer back."""
        return [self.get(key) for key in keys]

    def keys(self) -> list[str]:
        """All keys of the cache's table, in byte order."""
        with self._open():
            return self._ask(lambda store: store.keys())

    def facts(self, ref: str) -> ImageFacts:
        """What this cache says of an image; nothing where it has no manifest or config, or cannot read them."""
        return self.facts_and_doubt(ref)[0]

    def facts_many(self, refs: Iterable[str]) -> list[ImageFacts]:
        """The facts of each image, read from as few committed states as possible without holding a writer back."""
        return [self.facts(ref) for ref in refs]

    def facts_and_doubt(self, ref: str) -> tuple[ImageFacts, bool]:
        """The facts, and whether a config stands here that cannot be read: then no other cache may answer in its place."""
        with self._open():
            return self._probe(ref)

    def _open(self) -> threading.Lock:
        if self._closed:
            raise CacheError(self.path, "the handle is closed")
        if self._pid != os.getpid():
            self._lock, self._pid = threading.Lock(), os.getpid()
        return self._lock

    def _get(self, key: str) -> bytes | None:
        is_digest = _SHA256.fullmatch(key) is not None
        if not (is_digest or key.startswith("manifest:")) or "\0" in key or not _is_utf8(key):
            return None
        blob = self._ask(lambda store: store.row(key))
        if is_digest:
            return _verified(key, blob) or _verified(key, self._spilled(key)) or None
        if blob == b"" and isinstance(self._store, SqliteStore):
            blob = self._spilled(key)
            if blob is None or not self._store.owns_spill(key, self._spill_name(key), len(blob)):
                return None
        return blob or None

    def _ask(self, work: Callable[[Store], T]) -> T:
        try:
            return work(self._store)
        except (NotSqlite, NotRedb):  # the file was replaced by one of the other format
            self._store.close()
            self._store = _store(self.path)
            return work(self._store)

    def _spill_name(self, key: str) -> str:
        return key.replace(":", "_").replace("/", "_")

    def _spilled(self, key: str) -> bytes | None:
        return read_file(self._spill_dir / self._spill_name(key), MAX_BLOB_BYTES)

    def _manifest(self, ref: str) -> bytes | None:
        blob = self._get(f"manifest:{canonical(ref)}")
        if blob is None and self.format == "redb":  # ZLayer's redb era kept manifests by the name as typed
            blob = self._get(f"manifest:{ref}")
        return blob

    def _probe(self, ref: str) -> tuple[ImageFacts, bool]:
        manifest = self._manifest(ref)
        if manifest is None:
            return ImageFacts(), False
        try:
            digest, marker = read_manifest(manifest)
        except Unreadable:
            return ImageFacts(), False
        try:
            config = self._get(digest) if _SHA256.fullmatch(digest) else None
        except CacheBusy:
            raise
        except CacheError:
            config = None
        if config is None:
            return ImageFacts(marker=marker), False
        try:
            os_, isolation = read_config(config)
        except Unreadable:
            return ImageFacts(marker=marker), True
        return ImageFacts(os_, marker, isolation), False


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _verified(digest: str, blob: bytes | None) -> bytes | None:
    return blob if blob is not None and f"sha256:{hashlib.sha256(blob).hexdigest()}" == digest else None
