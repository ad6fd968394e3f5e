"""The backend: a directory and a supervisor for each task."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any

from zlayer_driver.backends import Context
from zlayer_driver.config import PluginConfig
from zlayer_driver.errors import CreateFailed, InvalidSpec, NotFound
from zlayer_driver.host import signals
from zlayer_driver.host.logs import log_ends
from zlayer_driver.host.pidfd import PidFd, ProcessId, identify
from zlayer_driver.host.processes import reap, spawn
from zlayer_driver.model import Exit, Fingerprint, Handle, Health, TaskSpec
from zlayer_driver_process import supervisor

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UNKNOWN_CODE = 255


def make(context: Context) -> ProcessBackend:
    return ProcessBackend(context.state_dir / "process")


def missing(config: PluginConfig) -> str:
    """What it needs and the node lacks: nothing."""
    del config
    return ""


class ProcessBackend:
    """Everything it keeps lies under ``root``."""

    name = "process"

    def __init__(self, root: Path) -> None:
        self._root = root

    async def probe(self) -> Fingerprint:
        return Fingerprint(Health.HEALTHY, "programs of the node itself")

    async def start(self, spec: TaskSpec) -> Mapping[str, Any]:
        if not spec.command:
            raise InvalidSpec("a program of the node is needed", hint='set "command" in the task\'s config')
        directory = self._directory(spec.id)
        await self._remove(directory)
        directory.mkdir(parents=True)
        argv = [sys.executable, "-I", "-S", supervisor.__file__, str(directory), spec.command, *spec.args]
        with log_ends(spec.stdout_path, spec.stderr_path) as logs:
            env, cwd = {"PATH": _PATH, **spec.env}, Path(spec.work_dir or "/")
            child = spawn(argv, stdout=logs.stdout, stderr=logs.stderr, env=env, pass_fds=logs.spares, cwd=cwd)
            status = await reap(child)
        if status != 0:
            await self._remove(directory)
            raise CreateFailed(spec.id, f"{spec.command!r} cannot be run", hint="see the task's standard error")
        return {name: [found.pid, found.start_ticks] for name, found in _processes(directory).items()}

    async def recover(self, handle: Handle) -> None:
        self._expect(handle)

    async def wait(self, handle: Handle) -> Exit:
        directory = self._expect(handle)
        if (process := self._open(handle, "supervisor")) is not None:
            with process:
                await process.wait()
        try:
            code = int((directory / "exit").read_text())
        except FileNotFoundError:
            return Exit(_UNKNOWN_CODE, error="how the task ended is lost: its supervisor was killed, or the node restarted")
        return Exit(code) if code >= 0 else Exit(128 - code, -code)

    async def stop(self, handle: Handle, *, timeout_s: float, signal: str) -> None:
        number = signals.number(signal or "SIGTERM")
        with suppress(NotFound):
            if self._send(handle, number):
                with suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        await self.wait(handle)
                        return
                self._send(handle, SIGKILL)
                await self.wait(handle)

    async def destroy(self, handle: Handle) -> None:
        await self._remove(self._directory(handle.task_id))

    async def signal(self, handle: Handle, signal: str) -> None:
        if not self._send(handle, signals.number(signal or "SIGTERM")):
            raise NotFound(handle.task_id, "it has ended, and takes no signal")

    def _directory(self, task_id: str) -> Path:
        return self._root / hashlib.sha256(task_id.encode()).hexdigest()[:32]

    def _expect(self, handle: Handle) -> Path:
        directory = self._directory(handle.task_id)
        if not (directory / "pids").exists():
            raise NotFound(handle.task_id, "this node has no process of it")
        return directory

    def _open(self, handle: Handle, name: str) -> PidFd | None:
        """``None`` if that process is gone."""
        return PidFd.open(ProcessId(*handle.data[name])) if name in handle.data else None

    def _send(self, handle: Handle, number: int) -> bool:
        self._expect(handle)
        process = self._open(handle, "task")
        if process is None:
            return False
        with process:
            return not process.ended() and process.send(number)

    async def _remove(self, directory: Path) -> None:
        """The supervisor ends when the task has."""
        for name, found in _processes(directory).items():
            if (process := PidFd.open(found)) is not None:
                with process:
                    if name == "task":
                        process.send(SIGKILL)
                    else:
                        await process.wait()
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


def _processes(directory: Path) -> dict[str, ProcessId]:
    """Those that are there: the task first, for its end is the supervisor's."""
    try:
        own, task = map(int, (directory / "pids").read_text().split())
    except FileNotFoundError:
        return {}
    return {name: found for name, pid in (("task", task), ("supervisor", own)) if (found := identify(pid)) is not None}
