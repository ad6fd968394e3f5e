"""A container that is the work of one foreground command, under a keeper of ours (see `tool_keeper`) that outlives the driver."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any, Final, Self

from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.errors import NotFound, StartFailed, TimedOut
from zlayer_driver.host.logs import log_ends
from zlayer_driver.host.processes import capture, reap, spawn
from zlayer_driver.model import Exit, TaskSpec

_KEEPER = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import tool_keeper; sys.exit(tool_keeper.main())"
KEEPER: Final = (sys.executable, "-I", "-S", "-c", _KEEPER)  # a module is compiled once, and a script at each of its starts
_END_TIMEOUT_S = 30.0
_UNKNOWN_CODE = 255
_SAME_START_S = 2.0
_NONE = -1  # no fd


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What lives as long as the container does.

    ``client`` says that the command only stands for the container, whose exit code it ends with. ``machine`` is a command that runs beside
    it, before and after, and ``ready`` one that succeeds once it may be used. ``env`` ``None`` is the driver's; ``stdin`` is a file.
    ``user``, ``group`` and ``extra_groups`` are the host's numbers, ``None`` for the driver's own.
    """

    argv: Sequence[str]
    client: bool = True
    env: Mapping[str, str] | None = None
    cwd: str = "/"
    stdin: str | None = None
    user: int | None = None
    group: int | None = None
    extra_groups: Sequence[int] | None = None
    machine: Sequence[str] | None = None
    ready: Sequence[str] | None = None
    tty: bool = False
    stop_signal: str = "SIGTERM"


class Job:
    """Of one container, from its directory; kept by this process until `close`. Any number may wait."""

    def __init__(self, bundle: Bundle, doc: Mapping[str, Any]) -> None:
        self.bundle = bundle
        self.doc = doc
        self.data: Mapping[str, Any] = {"incarnation": doc["incarnation"]}
        self._kept = bundle.keep()
        self._alive = _open(bundle.dir / "alive", os.O_RDONLY)
        self._gone: asyncio.Future[None] | None = None

    @classmethod
    def load(cls, bundle: Bundle) -> Self | None:
        """``None`` if there is none, if nobody can say any more how it ended, or if it is going."""
        try:
            job = cls(bundle, json.loads((bundle.dir / "job.json").read_bytes()))
        except FileNotFoundError:
            return None
        if job._kept is None or (job.ended and job.exit() is None):
            job.close()
            return None
        return job

    @classmethod
    async def launch(cls, bundle: Bundle, command: Command, spec: TaskSpec) -> Self:
        """Returns once the command runs; `StartFailed` with the reason if it does not. A cancelled launch has ended what it began."""
        doc = {**asdict(command), "incarnation": secrets.token_hex(8)}
        _write_private(bundle.dir / "job.json", doc)
        for name in ("alive", "control"):
            os.mkfifo(bundle.dir / name, 0o600)
        control = os.open(bundle.dir / "control", os.O_RDWR | os.O_CLOEXEC)  # holds what is written before the keeper listens
        try:
            with log_ends(spec.stdout_path, spec.stderr_path) as ends:
                keeper = spawn([*KEEPER, "keep", str(bundle.dir)], stdout=ends.stdout, stderr=ends.stderr, pass_fds=ends.spares)
            launching = asyncio.ensure_future(reap(keeper))
            try:
                status = await asyncio.shield(launching)
            except asyncio.CancelledError:
                os.write(control, b"%d\n" % SIGKILL)
                await asyncio.wait([launching])
                raise
        finally:
            os.close(control)
        if status != 0:
            raise StartFailed(spec.id, _text(bundle.dir / "failed") or "its keeper could not be started")
        return cls(bundle, doc)

    @property
    def ended(self) -> bool:
        if self._alive == _NONE:
            return True
        try:
            return os.read(self._alive, 1) == b""
        except BlockingIOError:
            return False

    def exit(self) -> Exit | None:
        """``None`` if its keeper has not written it, or never will."""
        try:
            told = json.loads((self.bundle.dir / "exit.json").read_bytes())
        except FileNotFoundError:
            return None
        return Exit(told["code"], told["signal"], error=told["lost"])

    async def wait(self) -> Exit:
        if not self.ended:
            await asyncio.shield(self._ending())
        if not self.bundle.dir.exists():
            raise NotFound(self.bundle.id, "it was removed")
        return self.exit() or Exit(_UNKNOWN_CODE, error=f"the exit code of container {self.bundle.id!r} is lost: its keeper was killed")

    def _ending(self) -> asyncio.Future[None]:
        if self._gone is None:
            loop = asyncio.get_running_loop()
            self._gone = loop.create_future()
            loop.add_reader(self._alive, self._notice, loop)
        return self._gone

    def _notice(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._alive)
        if self._gone and not self._gone.done():
            self._gone.set_result(None)

    @property
    def pid(self) -> int:
        """Of its command."""
        return int((self.bundle.dir / "pid").read_text())

    def signal(self, number: int) -> bool:
        """Whether its keeper was there to take it."""
        return told(self.bundle, number)

    async def kill(self) -> None:
        """Returns when nothing of it runs any more."""
        if self.signal(SIGKILL):
            try:
                async with asyncio.timeout(_END_TIMEOUT_S):
                    await self.wait()
            except TimeoutError:
                raise TimedOut(f"the end of container {self.bundle.id!r} after SIGKILL", _END_TIMEOUT_S) from None
        elif self.exit() is None:
            await _kill_unkept(self.bundle)

    def close(self) -> None:
        if self._gone and not self._gone.done():
            self._notice(self._gone.get_loop())
        for fd in (self._alive, self._kept):
            if fd is not None and fd != _NONE:
                os.close(fd)
        self._alive, self._kept = _NONE, None


def told(bundle: Bundle, number: int) -> bool:
    control = _open(bundle.dir / "control", os.O_WRONLY)
    if control == _NONE:
        return False
    try:
        os.write(control, b"%d\n" % number)
    finally:
        os.close(control)
    return True


async def end(bundle: Bundle) -> None:
    """Ends whatever runs of a container, from what is on disk."""
    doc: dict[str, Any] = {"incarnation": ""}
    job = Job(bundle, doc)
    try:
        await job.kill()
    except NotFound:
        pass
    finally:
        job.close()


async def _kill_unkept(bundle: Bundle) -> None:
    """The command of a keeper that was killed, if the process that has its number now began when it did."""
    path = bundle.dir / "pid"
    if not (pid := _text(path).strip()):
        return
    began = (await capture(["ps", "-o", "lstart=", "-p", pid], env={**os.environ, "LC_ALL": "C"})).stdout.decode().strip()
    if began and abs(time.mktime(time.strptime(began)) - path.stat().st_mtime) <= _SAME_START_S:
        with suppress(ProcessLookupError):
            os.killpg(int(pid), SIGKILL)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):  # not there, or a FIFO that nobody reads
            return _NONE
        raise


def _write_private(path: Path, doc: Mapping[str, Any]) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        json.dump(doc, file)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return ""
