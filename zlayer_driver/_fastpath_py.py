"""The readable twin of ``_fastpath``: the same functions and answers in plain Python. Import `zlayer_driver.fastpath` instead."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from zlayer_driver._fastpath_json_py import MAX_DOCUMENT_BYTES, Unreadable, read_config, read_manifest, read_sidecar
from zlayer_driver._fastpath_redb_py import NotRedb, RedbStore
from zlayer_driver._fastpath_sqlite_py import MAX_BLOB_BYTES, NotSqlite, SqliteStore
from zlayer_driver.errors import CacheBusy, CacheError, InvalidReference
from zlayer_driver.model import OS, ImageFacts, Reference

T = TypeVar("T")

MAX_REPOSITORY_BYTES = 255

_LABEL = "[a-zA-Z0-9]+(?:-+[a-zA-Z0-9]+)*"
_COMPONENT = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_SHAPE = re.compile(
    rf"(?P<name>(?:{_LABEL}(?:\.{_LABEL})*(?::[0-9]+)?/)?{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[^:@/]{1,128}))?"
    r"(?:@(?P<digest>[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}))?"
)
_DIGEST_DIGITS = {"sha256": 64, "sha384": 96, "sha512": 128}
_SHA256 = re.compile("sha256:[0-9a-f]{64}")
_CIRCLED_LETTERS = re.compile("[\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]")


def sanitize(ref: str) -> str:
    """The directory name under which ZLayer keeps a natively built image."""
    return ref.replace("/", "_").replace(":", "_").replace("@", "_")


def sanitize_many(refs: Iterable[str]) -> list[str]:
    return [sanitize(ref) for ref in refs]


def _is_word(char: str) -> bool:
    """Whether ``char`` is a word character of UTS #18: letters, marks, decimal digits, connectors, join controls."""
    category = unicodedata.category(char)
    return category[0] in "LM" or category in {"Nd", "Nl", "Pc"} or char in "\u200c\u200d" or _CIRCLED_LETTERS.fullmatch(char) is not None


def _is_tag(tag: str) -> bool:
    return _is_word(tag[0]) and all(char in ".-" or _is_word(char) for char in tag)


def _split(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        first, rest = "docker.io", name
    if first == "index.docker.io":
        first = "docker.io"
    if first == "docker.io" and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest


def parse(ref: str) -> Reference:
    """The parts of an image reference, by the grammar of the OCI distribution client that ZLayer uses; else `InvalidReference`."""
    found = _SHAPE.fullmatch(ref)
    if found is None or (found["tag"] and not _is_tag(found["tag"])):
        raise InvalidReference(ref, "it is not of the form [HOST[:PORT]/]PATH[:TAG][@DIGEST]" if ref else "it is empty")
    registry, repository = _split(found["name"])
    tag, digest = found["tag"], found["digest"]
    if len(repository) > MAX_REPOSITORY_BYTES:
        raise InvalidReference(ref, f"its repository is longer than {MAX_REPOSITORY_BYTES} bytes")
    if digest:
        algorithm, _, digits = digest.partition(":")
        if algorithm not in _DIGEST_DIGITS:
            raise InvalidReference(ref, f"digest algorithm {algorithm!r} is not supported")
        if len(digits) != _DIGEST_DIGITS[algorithm]:
            raise InvalidReference(ref, f"a {algorithm} digest has {_DIGEST_DIGITS[algorithm]} hex digits")
    return Reference(registry, repository, tag or (None if digest else "latest"), digest)


def canonical(ref: str) -> str:
    """The one spelling of a reference that all caches use; a text that is no reference stays as it is."""
    try:
        registry, repository, tag, digest = parse(ref)
    except InvalidReference:
        return ref
    return f"{registry}/{repository}{f':{tag}' if tag else ''}{f'@{digest}' if digest else ''}"


def canonical_many(refs: Iterable[str]) -> list[str]:
    return [canonical(ref) for ref in refs]


def cache_keys(ref: str) -> tuple[str, str, str]:
    """The blob cache's keys for an image's manifest, its manifest digest, and its name as typed."""
    name = canonical(ref)
    return f"manifest:{name}", f"manifest:digest-{name}", f"manifest-orig:{name}"


class Store(Protocol):
    """One file format of a blob cache."""

    def row(self, key: str) -> bytes | None: ...

    def keys(self) -> list[str]: ...

    def close(self) -> None: ...


def _read_file(path: Path, limit_bytes: int) -> bytes | None:
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

    def keys(self) -> list[str]:
        """All keys of the cache's table, in byte order."""
        with self._open():
            return self._ask(lambda store: store.keys())

    def facts(self, ref: str) -> ImageFacts:
        """What this cache says of an image; nothing where it has no manifest or config, or cannot read them."""
        with self._open():
            return self._probe(ref)[0]

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
        return _read_file(self._spill_dir / self._spill_name(key), MAX_BLOB_BYTES)

    def _manifest(self, ref: str) -> bytes | None:
        blob = self._get(f"manifest:{canonical(ref)}")
        if blob is None and self.format == "redb":  # ZLayer's redb era kept manifests by the name as typed
            blob = self._get(f"manifest:{ref}")
        return blob

    def _probe(self, ref: str) -> tuple[ImageFacts, bool]:
        """The facts, and whether a config stands here that cannot be read: then no other cache may answer in its place."""
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


def _sidecar_os(ref: str, caches: Sequence[str]) -> OS | None:
    name = sanitize(ref)
    if name in {"", ".", ".."}:
        return None
    for path in caches:
        raw = _read_file(Path(path).parent / name / "metadata.json", MAX_DOCUMENT_BYTES)
        with suppress(Unreadable):
            found = read_sidecar(raw) if raw is not None else None
            if found is not None:
                return found
    return None


def _asked(cache: str | os.PathLike[str] | BlobCache, ref: str) -> tuple[ImageFacts, bool]:
    if isinstance(cache, BlobCache):
        with cache._open():  # noqa: SLF001  # a friend: the handle and this function are one module
            return cache._probe(ref)  # noqa: SLF001  # likewise
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
