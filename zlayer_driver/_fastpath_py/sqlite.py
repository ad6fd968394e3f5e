"""Reads ZLayer's SQLite blob cache without ever writing, creating or locking anything that a writer would notice.

How the file is opened follows from what lies beside it:

==================  ================================================================================
no log              ``immutable``: the file is whole; what was read counts only if nothing changed meanwhile
``-wal``, ``-shm``  a writer is (or was) at work: SQLite's own snapshot protocol, shared memory read-only
``-wal`` alone      left by a crash or a copy: read from a private copy, so that nothing is recovered in place
``-journal``        a writer in rollback mode: SQLite's own locks
==================  ================================================================================

The database file itself is opened by SQLite only: closing any other descriptor of it would drop the locks of a writer in this process.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote

from zlayer_driver.errors import CacheBusy, CacheError

T = TypeVar("T")

ATTEMPTS = 8
MAX_BLOB_BYTES = 32 << 20
BUSY_TIMEOUT_S = 0.05
_BUSY_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PROTOCOL}
_IS_CACHE = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'blobs' COLLATE NOCASE AND rootpage > 0"
_ROW = "SELECT CASE WHEN typeof(data) IN ('blob', 'text') THEN CAST(data AS BLOB) END FROM blobs WHERE digest = ?"
_KEYS = "SELECT CAST(digest AS BLOB) FROM blobs WHERE typeof(digest) = 'text' ORDER BY digest"
_SHARED_SPILL = (
    "SELECT 1 FROM blobs WHERE digest >= :low AND digest < :high AND digest != :key "
    "AND replace(replace(digest, ':', '_'), '/', '_') = :name AND length(data) = 0 AND size_bytes = :size"
)


_FAILURES = (sqlite3.Error, UnicodeDecodeError)  # the second where a damaged name stands in SQLite's message


class NotSqlite(Exception):
    """The file is no SQLite database."""


class State(NamedTuple):
    """What the files looked like; equal states mean that nothing was committed in between."""

    database: tuple[int, ...]
    wal: tuple[int, ...] | None
    shared: bool
    journal: bool

    @property
    def settled(self) -> bool:
        """Nobody guards the reader, so the state must still hold after the read."""
        return not self.journal and not (self.wal and self.shared)


def _code(error: Exception) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _identity(path: str) -> tuple[int, ...] | None:
    with suppress(FileNotFoundError):
        found = Path(path).stat()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    return None


def _state(path: str) -> State:
    path = os.path.realpath(path)  # SQLite keeps its logs beside the file itself, not beside a link to it
    database = _identity(path)
    if database is None:
        raise CacheError(path, "no such file")
    wal = _identity(f"{path}-wal")
    journal = _identity(f"{path}-journal")
    if wal is not None and wal[2] == 0:
        wal = None
    return State(database, wal, wal is not None and Path(f"{path}-shm").exists(), journal is not None and journal[2] > 0)


class SqliteStore:
    """The ``blobs`` table of one database file; reopened whenever the file is another or has changed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._state: State | None = None
        self._pid = os.getpid()
        self.run(lambda _: None)

    def close(self) -> None:
        if self._connection is not None and self._pid == os.getpid():
            self._connection.close()
        self._connection = None

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What ``work`` reads from one committed state of the database."""
        for _ in range(ATTEMPTS):
            state = _state(self.path)
            try:
                answer = work(self._ready(state))
            except _FAILURES as error:
                self.close()
                if self._holds(state):
                    raise self._translated(error) from error
                continue
            if self._holds(state):
                return answer
            self.close()
        raise CacheBusy(self.path, "it changes faster than it can be read")

    def row(self, key: str) -> bytes | None:
        """The bytes of a row, empty where they were spilled to a file; ``None`` without a row."""

        def read(connection: sqlite3.Connection) -> bytes | None:
            found = connection.execute(_ROW, (key,)).fetchone()
            blob: bytes | None = found[0] if found else None
            return blob

        return self.run(read)

    def owns_spill(self, key: str, name: str, size_bytes: int) -> bool:
        """Whether the spill file ``name`` of ``size_bytes`` is ``key``'s, and can be no other key's.

        Names that share a file agree up to the first separator behind ``manifest:``.
        """
        low = "manifest:" + re.split("[_/:]", key.removeprefix("manifest:"), maxsplit=1)[0]

        def read(connection: sqlite3.Connection) -> bool:
            mine = connection.execute("SELECT 1 FROM blobs WHERE digest = ? AND size_bytes = ?", (key, size_bytes)).fetchone()
            shared = {"low": low, "high": f"{low}\U0010ffff", "key": key, "name": name, "size": size_bytes}
            other = connection.execute(_SHARED_SPILL, shared).fetchone()
            return mine is not None and other is None

        return self.run(read)

    def keys(self) -> list[str]:
        rows = self.run(lambda connection: connection.execute(_KEYS).fetchall())
        return [key.decode(errors="replace") for (key,) in rows]

    def _holds(self, state: State) -> bool:
        return not state.settled or _state(self.path) == state

    def _ready(self, state: State) -> sqlite3.Connection:
        if self._connection is None or self._pid != os.getpid() or not self._reusable(state):
            self.close()
            self._connection, self._pid = self._open(state), os.getpid()
        self._state = state
        return self._connection

    def _reusable(self, state: State) -> bool:
        last = self._state
        if last is None or state.settled or last.settled:
            return last == state
        return last.database[:2] == state.database[:2] and last.shared == state.shared

    def _open(self, state: State) -> sqlite3.Connection:
        connection = self._connect(state)
        try:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BLOB_BYTES)
            connection.execute("PRAGMA trusted_schema = OFF")
            is_cache = connection.execute(_IS_CACHE).fetchone() is not None
            if is_cache:
                connection.execute("SELECT data, last_accessed FROM blobs LIMIT 0")
        except _FAILURES as error:
            connection.close()
            if _code(error) == sqlite3.SQLITE_NOTADB:
                raise NotSqlite from error
            raise
        if not is_cache:
            connection.close()
            raise CacheError(self.path, "it has no table «blobs»")
        return connection

    def _connect(self, state: State) -> sqlite3.Connection:
        if state.wal and not state.shared:
            return self._private_copy()
        options = "readonly_shm=1" if state.wal else "" if state.journal else "immutable=1"
        uri = f"file:{quote(os.path.realpath(self.path))}?mode=ro&{options}"
        return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False, isolation_level=None)

    def _private_copy(self) -> sqlite3.Connection:
        path = os.path.realpath(self.path)
        memory = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        with tempfile.TemporaryDirectory() as scratch:
            for suffix in ("", "-wal"):
                shutil.copyfile(path + suffix, Path(scratch, f"copy{suffix}"))
            with closing(sqlite3.connect(Path(scratch, "copy"))) as copy:
                copy.backup(memory)
        return memory

    def _translated(self, error: Exception) -> CacheError:
        kind = CacheBusy if _code(error) in _BUSY_CODES else CacheError
        return kind(self.path, str(error))
