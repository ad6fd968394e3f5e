"""What the driver keeps on disk of an engine's container: who has it, and who carries its output.

Two lock files below the state directory, named after the container::

    NAME.kept   locked shared by every process that started or recovered the container; where nobody does, it is an orphan
    NAME.log    locked by the follower for as long as it lives (it inherits the lock), and holding its pid
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from zlayer_driver.backends import engine_follower
from zlayer_driver.errors import CreateFailed, InternalError
from zlayer_driver.host.logs import log_ends
from zlayer_driver.host.pidfd import PidFd
from zlayer_driver.host.processes import reap, spawn

_READY_WITHIN_S = 30.0
_REPLY_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Logs:
    """Paths of the task's log ends."""

    stdout: str
    stderr: str

    @property
    def wanted(self) -> bool:
        return {self.stdout, self.stderr} != {os.devnull}


@dataclass(slots=True)
class Output:
    """A container's two files, and the first lock where this process has it."""

    root: Path
    name: str
    _kept: int = -1

    @classmethod
    def keep(cls, root: Path, name: str) -> Self:
        """For a container that this process is about to start, or takes back."""
        root.mkdir(parents=True, exist_ok=True)
        found = cls(root, name)
        found._kept = _locked(root / f"{name}.kept", fcntl.LOCK_SH)
        if found._kept < 0:
            raise InternalError(f"container {name!r} is just being removed as an orphan", hint="start the task again", recoverable=True)
        return found

    @classmethod
    def claim_unkept(cls, root: Path, name: str) -> Self | None:
        """For the removal of a container that no living process has; ``None`` if one has."""
        root.mkdir(parents=True, exist_ok=True)
        found = cls(root, name)
        found._kept = _locked(root / f"{name}.kept", fcntl.LOCK_EX)
        return found if found._kept >= 0 else None

    async def follow(self, socket: str, container: str, pid: int, logs: Logs) -> None:
        """Returns once the container's output goes to the logs; ``pid`` is 0 before its start. Where a follower is at work, nothing changes."""
        if not logs.wanted or (lock := _locked(self._log, fcntl.LOCK_EX)) < 0:
            return
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, lock)
            reader, writer = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, reader)
            ends = stack.enter_context(log_ends(logs.stdout, logs.stderr))
            fds = (lock, writer, ends.stdout, ends.stderr)
            argv = [sys.executable, "-I", "-S", engine_follower.__file__, socket, container, str(pid), *map(str, fds)]
            try:
                child = spawn(argv, env={}, pass_fds=(*fds, *ends.spares))
            finally:
                os.close(writer)
            await reap(child)
            reply = await _read_to_end(reader)
        if reply != b"ok":
            raise CreateFailed(container, f"its output cannot be followed: {reply.decode('utf-8', 'replace')}")

    async def drained(self, timeout_s: float) -> None:
        """Returns when all output is in the logs, or after ``timeout_s``: a log that nobody reads must not hide an exit."""
        if (follower := self._follower()) is not None:
            with follower, contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await follower.wait()

    async def end(self) -> None:
        """Ends the follower."""
        if (follower := self._follower()) is not None:
            with follower:
                follower.send(9)
                await follower.wait()

    async def remove(self) -> None:
        """Ends the follower and forgets the container."""
        await self.end()
        self._log.unlink(missing_ok=True)
        (self.root / f"{self.name}.kept").unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        if self._kept >= 0:
            os.close(self._kept)
            self._kept = -1

    @property
    def _log(self) -> Path:
        return self.root / f"{self.name}.log"

    def _follower(self) -> PidFd | None:
        """Whoever has the lock; the pid is its own as long as the lock is held."""
        try:
            follower = PidFd(os.pidfd_open(int(self._log.read_text())))
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        if (lock := _locked(self._log, fcntl.LOCK_EX)) < 0:
            return follower
        os.close(lock)
        follower.close()
        return None


def _locked(path: Path, kind: int) -> int:
    """A descriptor with the lock, -1 if somebody else has it. A file that was removed meanwhile is made anew."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return -1
        try:
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)


async def _read_to_end(fd: int) -> bytes:
    """What the one at the other end writes before it closes; `CreateFailed` if that takes too long."""
    loop, data, ended = asyncio.get_running_loop(), bytearray(), asyncio.Event()

    def take() -> None:
        piece = os.read(fd, _REPLY_BYTES)
        data.extend(piece)
        if not piece:
            loop.remove_reader(fd)
            ended.set()

    loop.add_reader(fd, take)
    try:
        async with asyncio.timeout(_READY_WITHIN_S):
            await ended.wait()
    except TimeoutError:
        raise CreateFailed("follower", f"it was not ready within {_READY_WITHIN_S:g} s") from None
    finally:
        loop.remove_reader(fd)
    return bytes(data)
