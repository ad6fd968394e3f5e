"""Commands in an engine's container: ``/containers/ID/exec`` and ``/exec/ID``."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any

from zlayer_driver.backends.engine_api import Api, Wire
from zlayer_driver.backends.engine_framing import frames
from zlayer_driver.errors import DriverError, EngineError, NotFound, TimedOut
from zlayer_driver.host.pidfd import PidFd
from zlayer_driver.model import ExecResult, Exit
from zlayer_driver.readings import Channel, ExecEvent, ExecInput, ExecOptions, WindowSize

_CHUNK = 65536
_CANNOT_INVOKE, _NOT_FOUND = 126, 127
_FORGOTTEN = "no such exec session"
_MISSING = (b"no such file or directory", b"not found")
_SETTLE_S, _SETTLE_STEP_S = 5.0, 0.01  # the engine notes an exec's start and end a moment after its output says so


@dataclass(frozen=True, slots=True)
class Exec:
    """One command. ``container`` is the engine's id."""

    api: Api
    container: str
    id: str
    tty: bool

    @classmethod
    async def create(cls, api: Api, container: str, argv: Sequence[str], options: ExecOptions, *, stdin: bool, tty: bool) -> Exec:
        """`NotFound` if the container does not run."""
        body = {
            "Cmd": list(argv),
            "AttachStdin": stdin,
            "AttachStdout": True,
            "AttachStderr": True,
            "Tty": tty,
            "Env": [f"{name}={value}" for name, value in options.env.items()],
            "User": options.user,
            "WorkingDir": options.work_dir,
        }
        made = await api.call("POST", f"/containers/{container}/exec", body=body, container=container)
        return cls(api, container, made["Id"], tty)

    async def run(self, timeout_s: float) -> ExecResult:
        """`TimedOut` after ``timeout_s``, 0 being no limit; the command is killed then, and if the caller is cancelled."""
        told = {Channel.STDOUT: bytearray(), Channel.STDERR: bytearray()}
        try:
            async with asyncio.timeout(timeout_s or None):
                async for event in self.stream(None):
                    if event.exit_code is not None:
                        return ExecResult(Exit(event.exit_code), *map(bytes, told.values()))
                    told[event.channel] += event.data
        except TimeoutError:
            raise TimedOut("the command", timeout_s) from None
        raise EngineError(f"exec {self.id}", "it ended without an exit code")

    async def stream(self, stdin: AsyncIterator[ExecInput] | None) -> AsyncIterator[ExecEvent]:
        """Output, then the exit code. Leaving it early kills the command."""
        last, over = b"", False
        try:
            async with self.api.take_over(f"/exec/{self.id}/start", body={"Detach": False, "Tty": self.tty}) as wire:
                feeding = asyncio.create_task(self._feed(wire, stdin)) if stdin else None
                try:
                    async for channel, data in self._output(wire):
                        last = data
                        yield ExecEvent(channel, data)
                finally:
                    if feeding is not None:
                        feeding.cancel()
                        await asyncio.wait([feeding])
            code = await self._exit_code(last)
            over = True
        finally:
            if not over:
                await self._kill()
        yield ExecEvent(exit_code=code)

    async def _output(self, wire: Wire) -> AsyncIterator[tuple[Channel, bytes]]:
        if self.tty:
            async for piece in _pieces(wire):
                yield Channel.STDOUT, piece
        else:
            async for frame in frames(_pieces(wire)):
                yield frame

    async def _feed(self, wire: Wire, stdin: AsyncIterator[ExecInput]) -> None:
        with suppress(OSError, DriverError):  # the command need not take its input, nor be there for its end
            async for item in stdin:
                if isinstance(item, WindowSize):
                    await self.api.call("POST", f"/exec/{self.id}/resize", query={"h": item.rows, "w": item.columns})
                else:
                    await wire.write(item)
            if not self.tty:
                wire.get_extra_info("socket").shutdown(socket.SHUT_WR)

    async def _look(self) -> dict[str, Any]:
        """`NotFound` once the container has ended: Podman forgets its commands then."""
        try:
            found: dict[str, Any] = await self.api.call("GET", f"/exec/{self.id}/json")
        except EngineError as error:
            if _FORGOTTEN in error.reason:
                raise NotFound(self.container, "it ended before the engine had told how the command did") from error
            raise
        return found

    async def _exit_code(self, last_output: bytes) -> int:
        async with asyncio.timeout(_SETTLE_S):
            while (found := await self._look())["Running"]:  # noqa: ASYNC110  # the engine has no call that waits for it
                await asyncio.sleep(_SETTLE_STEP_S)
        code = int(found["ExitCode"])
        never_ran = not found["Pid"] and any(text in last_output for text in _MISSING)
        return _NOT_FOUND if code == _CANNOT_INVOKE and never_ran else code

    async def _kill(self) -> None:
        """No engine has a call for it, so the process itself is killed, where it can be seen: in the container's cgroup of this node."""
        with suppress(DriverError, TimeoutError, OSError):
            async with asyncio.timeout(_SETTLE_S):
                while (found := await self._look())["Running"] and not found["Pid"]:  # noqa: ASYNC110  # nor for its start
                    await asyncio.sleep(_SETTLE_STEP_S)
            if found["Running"]:
                _kill_member(int(found["Pid"]), self.container)


def _kill_member(pid: int, container: str) -> None:
    with PidFd(os.pidfd_open(pid)) as process:
        if container in Path(f"/proc/{pid}/cgroup").read_text():
            process.send(SIGKILL)


async def _pieces(wire: Wire) -> AsyncIterator[bytes]:
    while piece := await wire.read(_CHUNK):
        yield piece
