"""Network namespaces: a thread that lives in one, short visits to others, and namespaces that a file keeps alive."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from zlayer_driver.host.libc import check, libc
from zlayer_driver.host.mounts import mount, unmount

P = ParamSpec("P")
T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_OWN = "/proc/thread-self/ns/net"

_log = logging.getLogger(__name__)


def enter(fd: int) -> None:
    """Moves the calling thread, and only it, into a network namespace."""
    check(libc.setns(fd, _CLONE_NEWNET), "enter a network namespace")


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


class _Job:
    """Work for a `Worker`, and the future of whoever waits for it."""

    def __init__(self, work: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self._work = work
        self._loop = loop
        self.ended = loop.create_future()

    def do(self, refused: OSError | None) -> None:
        """In the worker's thread, which may be none of its namespace's."""
        result: Any = None
        failure: BaseException | None = refused
        try:
            result = self._work() if refused is None else None
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is raised where the work was asked for
            failure = error
        self._loop.call_soon_threadsafe(self._end, result, failure)

    def _end(self, result: Any, failure: BaseException | None) -> None:
        if self.ended.cancelled():
            if failure:
                _log.warning("failed while its caller was cancelled: %s", failure)
        elif failure:
            self.ended.set_exception(failure)
        else:
            self.ended.set_result(result)


class Worker:
    """One thread in one network namespace, which does in turn what must be done there. The event loop itself never leaves its own.

    Leaner than an executor, since a switch to a thread and back is a quarter of what an attach takes.
    """

    def __init__(self, path: str = _OWN) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._live, name="netns", daemon=True)
        self._thread.start()

    def _live(self) -> None:
        refused: OSError | None = None
        try:
            enter(self._fd)
        except OSError as error:
            refused = error
        while job := self._jobs.get():
            job.do(refused)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``work`` gives. It goes on to its end when the caller is cancelled."""
        job = _Job(partial(work, *args, **kwargs), asyncio.get_running_loop())
        self._jobs.put(job)
        found: T = await job.ended
        return found

    def close(self) -> None:
        """After the work that was asked for."""
        self._jobs.put(None)
        self._thread.join()
        os.close(self._fd)


def make(path: Path) -> bool:
    """A new network namespace that a mount on the file ``path`` keeps alive; false if it is there already."""
    if is_alive(path):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with opened() as home, visit(home):
        check(libc.unshare(_CLONE_NEWNET), "make a network namespace")
        path.touch(mode=0o444)
        mount(_OWN, path, "", _MS_BIND)
    return True


def remove(path: Path) -> None:
    """Lets the namespace go, which ends with its last process; none there is fine."""
    unmount(path)
    path.unlink(missing_ok=True)


def is_alive(path: str | Path) -> bool:
    """Whether the path leads to a namespace: one that a mount keeps, or that of a process."""
    try:
        return Path(path).stat().st_dev == Path(_OWN).stat().st_dev
    except OSError:
        return False
