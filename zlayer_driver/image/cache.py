"""The blob cache that pulls fill: manifests and configs by the keys and in the SQLite schema of ZLayer's blob cache.

Values lie in their rows whatever their size, never in spill files: those are found by names that two keys may share. One transaction
makes an image present, so a cache never has a manifest without its config.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from zlayer_driver.errors import CacheBusy, CacheError

_log = logging.getLogger(__name__)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS blobs (
    digest TEXT PRIMARY KEY NOT NULL,
    data BLOB NOT NULL,
    size_bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    last_accessed INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS idx_blobs_last_accessed ON blobs(last_accessed);
"""
_PUT = "INSERT OR REPLACE INTO blobs (digest, data, size_bytes, created_at, last_accessed) VALUES (?, ?, ?, ?, ?)"
_COPY = "INSERT OR REPLACE INTO blobs SELECT ?, data, size_bytes, created_at, last_accessed FROM blobs WHERE digest = ?"
_DELETE = "DELETE FROM blobs WHERE digest = ?"
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_CURES = {
    sqlite3.SQLITE_CANTOPEN: "see that the state directory can be written to",
    sqlite3.SQLITE_READONLY: "see that the state directory can be written to",
    sqlite3.SQLITE_FULL: "make room in the state directory",
}
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY_TIMEOUT_S = 30.0
_TOUCH_EVERY_S = 10
MANIFEST = "manifest:"
MANIFEST_DIGEST = "manifest:digest-"


class ImageCache:
    """Opened at first use; calls may come from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def get(self, key: str) -> bytes | None:
        with self._transaction() as db:
            row = db.execute("SELECT data FROM blobs WHERE digest = ?", (key,)).fetchone()
        return bytes(row[0]) if row is not None and isinstance(row[0], bytes) else None

    def references(self) -> list[str]:
        """All references that have a manifest, sorted."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT digest FROM blobs WHERE digest >= ? AND digest < ? ORDER BY digest", (MANIFEST, "manifest;")
            ).fetchall()
        return [key.removeprefix(MANIFEST) for (key,) in rows if isinstance(key, str) and not key.startswith(MANIFEST_DIGEST)]

    def touch(self, reference: str) -> None:
        """Notes that somebody uses an image. Exact to `_TOUCH_EVERY_S`, so that most calls only read."""
        key, now = f"{MANIFEST}{reference}", int(time.time())
        with self._transaction() as db:
            row = db.execute("SELECT last_accessed FROM blobs WHERE digest = ?", (key,)).fetchone()
        if row is not None and now - row[0] >= _TOUCH_EVERY_S:
            with self._transaction(write=True) as db:
                db.execute("UPDATE blobs SET last_accessed = ? WHERE digest = ?", (now, key))

    def idle(self, reference: str, idle_s: float) -> bool:
        """Whether nobody has used an image for so long."""
        with self._transaction() as db:
            row = db.execute("SELECT last_accessed FROM blobs WHERE digest = ?", (f"{MANIFEST}{reference}",)).fetchone()
        return row is not None and bool(row[0] <= time.time() - idle_s)

    def put_image(self, reference: str, manifest: tuple[str, bytes], config: tuple[str, bytes]) -> None:
        """Both as (digest, content)."""
        now = int(time.time())
        rows = {f"{MANIFEST}{reference}": manifest[1], f"{MANIFEST_DIGEST}{reference}": manifest[0].encode(), config[0]: config[1]}
        with self._transaction(write=True) as db:
            db.executemany(_PUT, [(key, data, len(data), now, now) for key, data in rows.items()])

    def copy_image(self, source: str, target: str) -> None:
        """Gives the manifest of one reference to another."""
        keys = [(f"{prefix}{target}", f"{prefix}{source}") for prefix in (MANIFEST, MANIFEST_DIGEST)]
        with self._transaction(write=True) as db:
            db.executemany(_COPY, keys)

    def remove_image(self, reference: str, config_of: Callable[[bytes], str]) -> bool:
        """Whether there was one. With it go the configs that no manifest names; ``config_of`` tells the digest that one names.

        All in one transaction: another process may record an image with the same config at any moment.
        """
        with self._transaction(write=True) as db:
            gone = db.executemany(_DELETE, [(f"{MANIFEST}{reference}",), (f"{MANIFEST_DIGEST}{reference}",)]).rowcount
            named, configs = set[str](), list[str]()
            for key, data in db.execute("SELECT digest, data FROM blobs WHERE typeof(digest) = 'text' AND typeof(data) = 'blob'"):
                if key.startswith("sha256:"):
                    configs.append(key)
                elif key.startswith(MANIFEST) and not key.startswith(MANIFEST_DIGEST):
                    named.add(config_of(data))
            db.executemany(_DELETE, [(key,) for key in configs if key not in named])
        return gone > 0

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db = self._db or self._connect()
                self._db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                with self._db:
                    yield self._db
            except sqlite3.DatabaseError as error:
                raise self._told(error) from error

    def _told(self, error: sqlite3.DatabaseError) -> CacheError:
        """What a failure means. A damaged file is out of the way from then on, so the same call may succeed when it is repeated."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # absent where Python's module complains, not SQLite
        if code in _DAMAGED:
            self._move_aside()
            damaged = CacheError(str(self.path), f"it is damaged ({error}); a new one takes its place, and images have to be pulled again")
            damaged.recoverable = True
            return damaged
        if code in _BUSY:
            return CacheBusy(str(self.path), str(error))
        return CacheError(str(self.path), str(error), hint=_CURES.get(code, ""))

    def _move_aside(self) -> None:
        """Keeps a damaged file for whoever wants to look at it. Nothing is moved if another process did so first."""
        if self._db is not None:
            self._db.close()
            self._db = None
        fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if self._is_damaged():
                aside = f"{self.path.name}.damaged-{time.time_ns()}"
                _log.warning("blob cache %s is damaged and is now %s: images have to be pulled again", self.path, aside)
                for ending in ("-wal", "-shm", ""):
                    with suppress(FileNotFoundError):
                        self.path.with_name(self.path.name + ending).rename(self.path.with_name(aside + ending))
        finally:
            os.close(fd)

    def _is_damaged(self) -> bool:
        try:
            with closing(self._connect()) as db:
                return bool(db.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",))
        except sqlite3.DatabaseError as error:
            return error.sqlite_errorcode & 0xFF in _DAMAGED

    def _connect(self) -> sqlite3.Connection:
        """A connection in WAL mode, as ZLayer's own, so that readers and a writer do not wait for each other."""
        db = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_SCHEMA)
        except sqlite3.Error:
            db.close()
            raise
        return db
