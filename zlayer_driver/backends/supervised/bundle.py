"""A container's directory: its name, what lies where in it, who may change it, and what is known of its processes.

::

    root/c/<id>/        one container; whoever holds the flock on it may change it
        config.json     the runtime spec
        etc/            hosts, hostname and resolv.conf, bound into the container
        layer/          the overlay's upper and work directories
        rootfs/         the overlay's mount point
        exit/<id>       written by conmon: the exit code
        record.json     written once the container is created, before it runs: the `Record`
        started         there once it runs; a bundle without it is half-made
        killed          there once we sent SIGKILL
        oom, lost       written by the monitor of a VM: it ran out of memory; why nobody can know how the container ended
        ended.json      the `Exit`, once somebody has asked for it
        kept            locked, shared, by every process that has started or recovered the container, as long as it lives
        destroying      there once it is to go: a half-destroyed one is finished, never used again
    root/rt/<runtime>/  an OCI runtime's own state
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from zlayer_driver.errors import InvalidSpec
from zlayer_driver.host.pidfd import ProcessId
from zlayer_driver.model import Exit

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def container_id(task_id: str) -> str:
    """A name that runtimes, file systems and cgroups all take: readable, the same for the same task, and no two tasks share one."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", task_id).strip("-")[:40].rstrip("-") or "task"
    return f"{readable}-{hashlib.sha256(task_id.encode()).hexdigest()[:12]}"


def boot_id() -> str:
    return _BOOT_ID.read_text().strip()


@dataclass(frozen=True, slots=True)
class Record:
    """The processes of a container, which runtime (its path, and whose command line it has) made it, and the digest of the spec it was made from; also the `Handle.data`."""

    runtime: str
    kind: str
    boot: str
    init: ProcessId
    supervisor: ProcessId
    stop_signal: str
    spec: str

    def data(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Self:
        """`InvalidSpec` if ``data`` is no record of ours."""
        try:
            init, supervisor = (ProcessId(int(data[key]["pid"]), int(data[key]["start_ticks"])) for key in ("init", "supervisor"))
            return cls(
                str(data["runtime"]), str(data["kind"]), str(data["boot"]), init, supervisor, str(data["stop_signal"]), str(data["spec"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidSpec(f"container record is damaged: {error!r}", hint="stop and start the task again") from error


class Bundle:
    """Paths and marks of one container. Nothing need exist."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.id = name
        self.dir = root / "c" / name
        self.config = self.dir / "config.json"
        self.etc = self.dir / "etc"
        self.layer = self.dir / "layer"
        self.rootfs = self.dir / "rootfs"
        self.exits = self.dir / "exit"
        self.started = self.dir / "started"
        self.killed = self.dir / "killed"
        self.destroying = self.dir / "destroying"
        self._kept = self.dir / "kept"
        self.oom = self.dir / "oom"
        self._lost = self.dir / "lost"
        self._record = self.dir / "record.json"
        self._ended = self.dir / "ended.json"
        # One flat group: no parent to share with, and so none to remove while another container is being made below it.
        self.cgroup = f"/zlayer-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}-{name}"

    @property
    def complete(self) -> bool:
        return self.started.exists() and not self.destroying.exists()

    def is_empty(self) -> bool:
        return not any(self.dir.iterdir())

    def forget(self) -> None:
        """Takes the marks of a whole container away, so that what is left of it can only be taken for a half-made one."""
        for mark in (self.started, self._record):
            mark.unlink(missing_ok=True)

    def write_record(self, record: Record) -> None:
        _write(self._record, record.data())

    def record(self) -> Record | None:
        with suppress(FileNotFoundError):
            return Record.load(json.loads(self._record.read_bytes()))
        return None

    def network(self) -> str | None:
        """The path of the container's network namespace, empty for a new one; ``None`` if it has the host's."""
        kinds = json.loads(self.config.read_bytes())["linux"]["namespaces"]
        return next((str(kind.get("path", "")) for kind in kinds if kind["type"] == "network"), None)

    def exit_code(self) -> int | None:
        """What conmon wrote; ``None`` if it has not, or never will."""
        with suppress(FileNotFoundError, ValueError):
            return int((self.exits / self.id).read_text())
        return None

    def lost(self) -> str:
        """Why the exit code cannot be known, or nothing."""
        with suppress(FileNotFoundError):
            return self._lost.read_text()
        return ""

    def keep(self) -> int | None:
        """The fd of a lock that says: somebody has this container; ``None`` if it is gone, or just going."""
        return self._lock_kept(fcntl.LOCK_SH)

    def claim_unkept(self) -> int | None:
        """The fd of a lock that keeps others from recovering the container; ``None`` if somebody has it."""
        return self._lock_kept(fcntl.LOCK_EX)

    def _lock_kept(self, kind: int) -> int | None:
        try:
            fd = os.open(self._kept, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def started_before(self, unix_s: float) -> bool:
        with suppress(FileNotFoundError):
            return self.started.stat().st_mtime <= unix_s
        return False

    def write_ended(self, end: Exit) -> None:
        with suppress(FileNotFoundError):  # destroyed meanwhile
            _write(self._ended, asdict(end))

    def ended(self) -> Exit | None:
        with suppress(FileNotFoundError):
            return Exit(**json.loads(self._ended.read_bytes()))
        return None

    @asynccontextmanager
    async def locked(self, *, create: bool = False) -> AsyncIterator[bool]:
        """Holds the container against every other instance of the driver; the value is whether its directory exists."""
        fd = await self._lock(create=create)
        try:
            yield fd is not None
        finally:
            if fd is not None:
                os.close(fd)

    def try_lock(self) -> int | None:
        """The fd of a lock taken at once; ``None`` if somebody holds it or nothing is there."""
        fd = self._open(create=False)
        if fd is None:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    async def _lock(self, *, create: bool) -> int | None:
        while (fd := self._open(create=create)) is not None:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await _wait_for_lock(fd)
            if self._names(fd):
                return fd
            os.close(fd)
        return None

    def _open(self, *, create: bool) -> int | None:
        if create:
            self.dir.mkdir(0o711, parents=True, exist_ok=True)
        try:
            return os.open(self.dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None

    def _names(self, fd: int) -> bool:
        """Whether the directory of ``fd`` is still the one at our path: its last holder may have removed it."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(fd), self.dir.stat())
        return False


async def _wait_for_lock(fd: int) -> None:
    """Waits in a thread; a cancelled waiter closes the fd once the thread has come back with the lock."""
    waiting = asyncio.ensure_future(asyncio.to_thread(fcntl.flock, fd, fcntl.LOCK_EX))
    try:
        await asyncio.shield(waiting)
    except asyncio.CancelledError:
        waiting.add_done_callback(lambda _: os.close(fd))
        raise


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Whole or not at all, for readers in any process."""
    half = path.with_suffix(".half")
    half.write_text(json.dumps(value))
    half.rename(path)
