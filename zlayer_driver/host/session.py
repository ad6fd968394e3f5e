"""A child whose standard streams are ours while it runs: three pipes, or one terminal."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import tty as terminal
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Self

from zlayer_driver.errors import Unsupported
from zlayer_driver.host.processes import reap, spawn

STDOUT, STDERR = 1, 2
_CHUNK = 1 << 16
_GRACE_S = 5.0
_AHEAD = 16  # chunks read before the consumer asks; beyond it the child blocks
_END_OF_INPUT = b"\x04"  # what a terminal's line discipline takes for the end of a file


class Session:
    """``status`` is done when the child has ended; cancelling it kills the child. `close` it in any case."""

    def __init__(self, child: subprocess.Popen[bytes], stdin: int, outputs: dict[int, int], *, tty: bool) -> None:
        self.status = asyncio.ensure_future(reap(child, grace_s=_GRACE_S))
        self._child = child
        self._stdin = stdin
        self._outputs = outputs
        self._tty = tty
        self._pumps: list[asyncio.Task[None]] = []
        for fd in {stdin, *outputs.values()}:
            os.set_blocking(fd, False)

    @classmethod
    def start(cls, argv: Sequence[str], *, tty: bool) -> Self:
        """On a terminal the child is given one in raw mode: the line discipline that counts is that of the terminal it opens itself."""
        if tty:
            master, slave = pty.openpty()
            terminal.setraw(slave)
            ours, theirs = (master, master, master), (slave, slave, slave)
        else:
            pipes = [os.pipe() for _ in range(3)]
            ours, theirs = (pipes[0][1], pipes[1][0], pipes[2][0]), (pipes[0][0], pipes[1][1], pipes[2][1])
        try:
            child = spawn(argv, stdin=theirs[0], stdout=theirs[1], stderr=theirs[2])
        except Unsupported:
            _close_all(ours)
            raise
        finally:
            _close_all(theirs)
        return cls(child, ours[0], {STDOUT: ours[1]} if tty else {STDOUT: ours[1], STDERR: ours[2]}, tty=tty)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Chunks with the stream that they came from, up to the end of both. Once."""
        ready: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(_AHEAD)
        self._pumps = [asyncio.create_task(_pump(fd, stream, ready)) for stream, fd in self._outputs.items()]
        for _ in self._pumps:
            while (chunk := await ready.get()) is not None:
                yield chunk

    async def write(self, data: bytes) -> None:
        """Waits while the child does not read; `BrokenPipeError` once it never will."""
        loop = asyncio.get_running_loop()
        while data:
            try:
                data = data[os.write(self._stdin, data) :]
            except BlockingIOError:
                await _until(self._stdin, loop.add_writer, loop.remove_writer)

    async def end_input(self) -> None:
        if self._tty:
            await self.write(_END_OF_INPUT)
        else:
            os.close(self._stdin)
            self._stdin = -1

    def resize(self, rows: int, columns: int) -> None:
        """The child is told as by a terminal that controls it; without a terminal, nothing happens."""
        if self._tty and not self.status.done():
            fcntl.ioctl(self._stdin, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            self._child.send_signal(signal.SIGWINCH)

    async def close(self) -> None:
        """Kills the child if it still runs. Nobody may be in `output` or `write` any more."""
        for task in (self.status, *self._pumps):
            task.cancel()
        await asyncio.wait([self.status, *self._pumps])
        _close_all({self._stdin, *self._outputs.values()} - {-1})


async def _pump(fd: int, stream: int, ready: asyncio.Queue[tuple[int, bytes] | None]) -> None:
    while chunk := await _read(fd):
        await ready.put((stream, chunk))
    await ready.put(None)


async def _read(fd: int) -> bytes:
    """What there is, at least a byte; nothing at the end, which a terminal tells by EIO when its other side is gone."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return os.read(fd, _CHUNK)
        except BlockingIOError:
            await _until(fd, loop.add_reader, loop.remove_reader)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b""


async def _until(fd: int, add: Callable[..., Any], remove: Callable[[int], Any]) -> None:
    """Returns once the loop says that ``fd`` is ready, in the direction of ``add`` and ``remove``."""
    ready = asyncio.Event()
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)


def _close_all(fds: Iterable[int]) -> None:
    for fd in set(fds):
        os.close(fd)
