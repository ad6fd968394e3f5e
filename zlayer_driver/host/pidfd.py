"""Processes that are told apart for good, and waited for without polling."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import signal
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

# struct pidfd_info of <linux/pidfd.h>, the 64 bytes of its first version: a 64-bit mask first, a 32-bit exit code last.
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3
_INFO = struct.Struct("<Q52xi")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process for good: its pid may be used again, its pid with its start time (clock ticks since boot) not before a reboot."""

    pid: int
    start_ticks: int


def identify(pid: int) -> ProcessId | None:
    """The process that has this pid now, running or a zombie; ``None`` if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): field 2 is the name in parentheses, which may hold anything; field 22 is the start time.
    return ProcessId(pid, int(stat[stat.rindex(b")") + 2 :].split()[19]))


class PidFd:
    """A handle on one process. Owns its fd; `close` it, or use it as a context manager.

    Any number of coroutines may `wait` at once, all on the loop of the first.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._ended: asyncio.Future[None] | None = None

    @classmethod
    def of_child(cls, pid: int) -> Self:
        """Of a child that nobody but the caller reaps."""
        return cls(_exit_fd(pid))

    @classmethod
    def open(cls, process: ProcessId) -> Self | None:
        """``None`` if that very process is gone; a zombie is still there, and counts as ended."""
        try:
            handle = cls(os.pidfd_open(process.pid))
        except ProcessLookupError:
            return None
        if identify(process.pid) != process:
            handle.close()
            return None
        return handle

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._fd

    def ended(self) -> bool:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(0))

    async def wait(self) -> None:
        """Returns once the process has ended. Cancelling one waiter leaves the others waiting."""
        if self._ended is None:
            loop = asyncio.get_running_loop()
            self._ended = loop.create_future()
            loop.add_reader(self._fd, self._notice, loop)
        await asyncio.shield(self._ended)

    def _notice(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._fd)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def send(self, number: int) -> bool:
        """Whether the process was still there to be signalled."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    def wait_status(self) -> int | None:
        """The wait status (as of waitpid) of a process that somebody has reaped; ``None`` before, and on kernels before 6.15."""
        buffer = bytearray(_INFO.size)
        _INFO.pack_into(buffer, 0, _PIDFD_INFO_EXIT, 0)
        try:
            fcntl.ioctl(self._fd, _PIDFD_GET_INFO, buffer)
        except OSError:
            return None
        mask, status = _INFO.unpack(buffer)
        return int(status) if mask & _PIDFD_INFO_EXIT else None

    def close(self) -> None:
        if self._fd < 0:
            return
        if self._ended is not None and not self._ended.done():
            self._notice(self._ended.get_loop())  # whoever still waits must not wait for ever
        os.close(self._fd)
        self._fd = -1


if sys.platform == "linux":

    def _exit_fd(pid: int) -> int:
        """An fd that can be read once a child has ended."""
        return os.pidfd_open(pid)

else:

    def _exit_fd(pid: int) -> int:
        """A kqueue with that one event, where there are no pidfds."""
        queue = select.kqueue()
        try:
            queue.control([select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)], 0)
        except ProcessLookupError:  # it is a zombie already
            reader, writer = os.pipe()
            os.close(writer)
            return reader
        return os.dup(queue.fileno())
