"""Who has which address number of this node: a table on disk that a crash cannot tear, and in which no number is given twice.

The table outlives the plugin, not the machine: after a reboot no container is left, and it begins empty. Commits are therefore written,
not flushed to the platter (WAL with ``synchronous=NORMAL``): a killed process loses none.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from zlayer_driver.errors import NetworkError

FILE = "leases.db"
_BUSY_S = 5.0
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS lease (
        owner TEXT PRIMARY KEY,
        number INTEGER NOT NULL UNIQUE,
        place TEXT NOT NULL,
        leaving INTEGER NOT NULL DEFAULT 0
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS boot (id TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
"""
_BOOT = Path("/proc/sys/kernel/random/boot_id")
# The first free number from one on, below ?3: that one itself, or the one after a number in use. Null if there is none.
_FREE = """
    (SELECT min(candidate) FROM (SELECT {0} AS candidate UNION ALL SELECT number + 1 FROM lease WHERE number >= {0})
     WHERE candidate < ?3 AND candidate NOT IN (SELECT number FROM lease))
"""
# One statement, so that it is a transaction of its own: an owner's number is its own, ?4 is where to look first, ?5 where numbers begin.
_TAKE = f"""
    INSERT INTO lease (owner, place, number)
    VALUES (?1, ?2, coalesce((SELECT number FROM lease WHERE owner = ?1), {_FREE.format("?4")}, {_FREE.format("?5")}))
    ON CONFLICT DO UPDATE SET place = excluded.place, leaving = 0 RETURNING number
"""  # noqa: S608  # of this file's own text


@dataclass(frozen=True, slots=True)
class Lease:
    """``place`` is where the address is: a namespace's path, or empty. A ``leaving`` one is let go once its link is."""

    owner: str
    number: int
    place: str
    leaving: bool = False


class Leases:
    """The table at ``path``, with the ``numbers`` that may be given. For one thread, the one that makes it."""

    def __init__(self, path: Path, numbers: range) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._numbers = numbers
        self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
        self._db.execute("PRAGMA page_size=1024")  # rows are short, and a commit writes and sums whole pages
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)
        self._forget_other_boots(_BOOT.read_text().strip())
        self._next = max((lease.number + 1 for lease in self.all()), default=numbers.start)

    def _forget_other_boots(self, boot: str) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            if not self._db.execute("SELECT 1 FROM boot WHERE id = ?", (boot,)).fetchone():
                self._db.execute("DELETE FROM lease")
                self._db.execute("DELETE FROM boot")
                self._db.execute("INSERT INTO boot VALUES (?)", (boot,))

    def close(self) -> None:
        self._db.close()

    def take(self, owner: str, place: str) -> Lease:
        """The owner's lease: the one it has, else a number that nobody has. Numbers go round, so that a freed one rests for a while."""
        try:
            ((number,),) = self._db.execute(_TAKE, (owner, place, self._numbers.stop, self._next, self._numbers.start)).fetchall()
        except sqlite3.IntegrityError:  # the table takes no null
            raise NetworkError(
                f"all {len(self._numbers)} addresses of this node are given", hint="give it a larger subnet", recoverable=True
            ) from None
        self._next = number + 1
        return Lease(owner, number, place)

    def hold(self, owner: str, number: int) -> Lease:
        """The lease of a number that was given elsewhere; `NetworkError` if it is another's, or not of this node."""
        if number not in self._numbers:
            raise NetworkError(f"cannot give address number {number} to {owner!r}: it is not in the node's subnet")
        self._db.execute("INSERT INTO lease (owner, number, place) VALUES (?, ?, '') ON CONFLICT DO NOTHING", (owner, number))
        holder = self._rows("WHERE owner = ? OR number = ?", owner, number)
        if [(lease.owner, lease.number) for lease in holder] != [(owner, number)]:
            raise NetworkError(f"cannot give address number {number} to {owner!r}: {holder[0].owner!r} has number {holder[0].number}")
        return holder[0]

    def leave(self, owner: str) -> Lease | None:
        """Marks a lease as one to let go; ``None`` if there is none."""
        found = self._db.execute("UPDATE lease SET leaving = 1 WHERE owner = ? RETURNING number, place", (owner,)).fetchall()
        return Lease(owner, found[0][0], found[0][1], leaving=True) if found else None

    def release(self, lease: Lease) -> None:
        """Frees the number, unless the owner has taken it anew meanwhile."""
        self._db.execute("DELETE FROM lease WHERE owner = ? AND number = ? AND leaving", (lease.owner, lease.number))

    def find(self, owner: str) -> Lease | None:
        return next(iter(self._rows("WHERE owner = ?", owner)), None)

    def all(self) -> list[Lease]:
        """In order of their numbers."""
        return self._rows("ORDER BY number")

    def leaving(self) -> list[Lease]:
        return self._rows("WHERE leaving")

    def _rows(self, condition: str, *values: object) -> list[Lease]:
        return _select(self._db, condition, *values)


def read(path: Path) -> list[Lease]:
    """The leases in a table that another process may be writing, in order of their numbers; none if there is no table."""
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)) as db:
            return _select(db, "ORDER BY number")
    except sqlite3.Error as error:
        raise unusable(path, error) from error


def unusable(path: Path, error: sqlite3.Error) -> NetworkError:
    return NetworkError(f"the leases in {path} cannot be used: {error}", hint="if it is damaged, stop the node's allocations and delete it")


def _select(db: sqlite3.Connection, condition: str, *values: object) -> list[Lease]:
    with closing(db.execute(f"SELECT owner, number, place, leaving FROM lease {condition}", values)) as cursor:  # noqa: S608  # a literal of this file
        return [Lease(owner, number, place, bool(leaving)) for owner, number, place, leaving in cursor]
