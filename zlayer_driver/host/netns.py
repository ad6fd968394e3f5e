"""Network namespaces: a thread that lives in one, short visits to others, and namespaces that a file keeps alive."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from zlayer_driver.host.mounts import mount, unmount

P = ParamSpec("P")
T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_OWN = "/proc/thread-self/ns/net"

_log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def enter(fd: int) -> None:
    """Moves the calling thread, and only it, into a network namespace."""
    _check(_libc.setns(fd, _CLONE_NEWNET), "setns")


@contextmanager
def opened(path: str = _OWN) -> Iterator[int]:
    """An fd of the namespace at ``path``: by default, of the calling thread's."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def visit(there: int) -> Iterator[None]:
    """The calling thread is in another namespace for as long as the context lasts; nothing may be awaited in it."""
    with opened() as home:
        enter(there)
        try:
            yield
        finally:
            enter(home)


class Worker:
    """One thread in one network namespace, which does in turn what must be done there. The event loop itself never leaves its own."""

    def __init__(self, path: str = "/proc/self/ns/net") -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._thread = ThreadPoolExecutor(1, "netns", enter, (self._fd,))

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``work`` gives. Work that has begun goes on to its end when the caller is cancelled; the cancellation follows then."""
        asked = asyncio.wrap_future(future := self._thread.submit(work, *args, **kwargs))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            if not future.cancel():
                await asyncio.wait([asked])
            if asked.done() and not asked.cancelled() and (failure := asked.exception()):
                _log.warning("failed while its caller was cancelled: %s", failure)
            raise

    def close(self) -> None:
        """After the work that was asked for."""
        self._thread.shutdown()
        os.close(self._fd)


def make(path: Path) -> bool:
    """A new network namespace that a mount on the file ``path`` keeps alive; false if it is there already."""
    if is_kept(path):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o444)
    with opened() as home, visit(home):
        _check(_libc.unshare(_CLONE_NEWNET), "unshare")
        mount(_OWN, path, "", _MS_BIND)
    return True


def is_kept(path: Path) -> bool:
    """Whether a namespace is mounted on the file."""
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """Lets the namespace go, which ends with its last process; none there is fine."""
    unmount(path)
    path.unlink(missing_ok=True)


def is_alive(path: str) -> bool:
    """Whether the path leads to a namespace: one that a mount keeps, or that of a process."""
    try:
        return Path(path).stat().st_dev == Path(_OWN).stat().st_dev
    except OSError:
        return False
