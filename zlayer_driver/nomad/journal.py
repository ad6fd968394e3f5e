"""What of a batch was planned, accepted and ended, on disk: a batch that was interrupted goes on where it was.

A journal is a file of JSON lines that only grows. Plans are on the disk before the first job of them leaves, so that a line that was cut off
by a crash was never acted on and is dropped.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from zlayer_driver.errors import ConfigError

Json = dict[str, Any]


@dataclass
class Entry:
    """One call to Nomad. ``parent`` is the parameterised job to dispatch, empty where ``body`` is a job of its own.

    ``jobs`` are the ids of the batch's lines by the name of the group that runs them (a dispatched job has one line, whatever its groups).
    ``nomad_id`` is known once Nomad accepted; ``outcomes`` by line once it ended.
    """

    key: str
    jobs: dict[str, str]
    body: Json
    parent: str = ""
    nomad_id: str = ""
    outcomes: dict[str, str] = field(default_factory=dict)


class Journal:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self.path = path
        self.entries: dict[str, Entry] = {}
        good = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            self._read(line)
            good += len(line)
        file.truncate(good)
        file.seek(good)

    @classmethod
    @contextmanager
    def open(cls, path: Path, *, resume: bool) -> Iterator[Self]:
        """The journal at ``path``, made if need be; nobody else has it meanwhile. `ConfigError` if it was begun and not to be resumed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{path} is in use", hint="the batch is being submitted by another process") from None
            journal = cls(file, path)
            if journal.entries and not resume:
                raise ConfigError(f"{path} says that this batch was begun", hint="go on with --resume, or name another with --batch")
            yield journal

    def planned(self) -> set[str]:
        """The ids of all lines that have an entry."""
        return {name for entry in self.entries.values() for name in entry.jobs.values()}

    def plan(self, entries: Iterable[Entry]) -> None:
        """Takes entries in; when it returns they will be there after a crash."""
        for entry in entries:
            if entry.key in self.entries:
                raise ConfigError(f"two jobs of the batch would both be {entry.key!r} in Nomad", hint="give them other ids")
            self.entries[entry.key] = entry
            self._write({"plan": entry.key, "jobs": entry.jobs, "body": entry.body, "parent": entry.parent})
        self._file.flush()
        os.fsync(self._file.fileno())

    def accepted(self, entry: Entry, nomad_id: str) -> None:
        entry.nomad_id = nomad_id
        self._write({"accepted": entry.key, "as": nomad_id})
        self._file.flush()

    def ended(self, entry: Entry, outcomes: dict[str, str]) -> None:
        entry.outcomes = outcomes
        self._write({"ended": entry.key, "outcomes": outcomes})
        self._file.flush()

    def _write(self, record: Json) -> None:
        self._file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")

    def _read(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            if "plan" in record:
                self.entries[record["plan"]] = Entry(record["plan"], dict(record["jobs"]), dict(record["body"]), str(record["parent"]))
            elif "accepted" in record:
                self.entries[record["accepted"]].nomad_id = str(record["as"])
            else:
                self.entries[record["ended"]].outcomes = dict(record["outcomes"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path} is no journal of a batch: {error!r}", hint="name another batch with --batch") from error
