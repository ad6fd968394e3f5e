"""Other programs on POSIX: argv lists only, nothing inherited but what is named, no wait that polls. `commands` is for Windows."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from signal import SIGKILL

from zlayer_driver.errors import TimedOut, Unsupported
from zlayer_driver.host.commands import Completed
from zlayer_driver.host.pidfd import PidFd

_CHUNK = 65536


class _Drain:
    """Reads a pipe into memory up to a limit, and past it into nothing, so that the writer never blocks."""

    def __init__(self, limit_bytes: int) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.data = bytearray()
        self._left = limit_bytes
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.reader, self.take)

    def take(self) -> None:
        """All that is in the pipe now."""
        while True:
            try:
                chunk = os.read(self.reader, _CHUNK)
            except BlockingIOError:
                return
            if not chunk:
                self._loop.remove_reader(self.reader)
                return
            self.data += chunk[: self._left]
            self._left = max(0, self._left - len(chunk))

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        self._loop.remove_reader(self.reader)
        os.close(self.reader)
        self.close_writer()


def spawn(
    argv: Sequence[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.DEVNULL,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """A child in a session of its own, with the three streams and ``pass_fds`` and no other fd of ours, to be reaped by `reap`."""
    fds = tuple(pass_fds)
    try:
        return subprocess.Popen(
            list(argv), stdin=stdin, stdout=stdout, stderr=stderr, env=env, pass_fds=fds, cwd=cwd, start_new_session=True
        )
    except OSError as error:
        raise Unsupported(f"{argv[0]} cannot be run: {error.strerror}", hint="see that it is installed") from error


async def reap(child: subprocess.Popen[bytes], *, grace_s: float = 0.0) -> int:
    """The child's return code, as `subprocess` gives it. When cancelled, the child is killed and reaped first.

    With ``grace_s`` its own children are killed before it, and it has that long to notice and end: who kills a parent outright leaves its
    children to init, dead or alive.
    """
    with PidFd.of_child(child.pid) as pidfd:
        try:
            await pidfd.wait()
        finally:
            if not pidfd.ended() and grace_s:
                await _end_children(child.pid, pidfd, grace_s)
            if not pidfd.ended():
                child.kill()
            status = child.wait()  # returns at once: it has ended, or SIGKILL is on its way
    return status


async def _end_children(pid: int, pidfd: PidFd, grace_s: float) -> None:
    if not (found := children(pid)):
        return
    for process in found:
        with suppress(ProcessLookupError):
            os.kill(process, SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await pidfd.wait()


def children(pid: int) -> list[int]:
    """Pids of the living and dead children of a child of ours; they cannot be reused while it has not reaped them."""
    found = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            found += [int(word) for word in thread.read_text().split()]
    return found


async def capture(
    argv: Sequence[str],
    *,
    timeout_s: float = 0.0,
    limit_bytes: int = 1 << 20,
    env: Mapping[str, str] | None = None,
    grace_s: float = 0.0,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Runs a program to its end and gives what it wrote. ``timeout_s`` 0 is no limit; `TimedOut` else, the program killed.

    The end is the program's own: a child of it that keeps the pipes open is not waited for. ``grace_s`` as in `reap`.
    """
    with closing(_Drain(limit_bytes)) as out, closing(_Drain(limit_bytes)) as err:
        child = spawn(argv, stdout=out.writer, stderr=err.writer, env=env, pass_fds=pass_fds)
        out.close_writer()
        err.close_writer()
        try:
            async with asyncio.timeout(timeout_s or None):
                status = await reap(child, grace_s=grace_s)
        except TimeoutError:
            raise TimedOut(Path(argv[0]).name, timeout_s) from None
        out.take()
        err.take()
        return Completed(status, bytes(out.data), bytes(err.data))


def command_lines() -> Iterator[tuple[int, list[bytes]]]:
    """Pid and argv of every process of this pid namespace that has one; what runs in a container is left out."""
    ours = Path("/proc/self/ns/pid").readlink()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")[:-1]
            if argv and (entry / "ns/pid").readlink() == ours:
                yield int(entry.name), argv
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
