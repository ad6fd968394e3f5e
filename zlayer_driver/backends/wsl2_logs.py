"""What the agent in the distro adds to its backend: FIFOs of each container's own, which relays copy to Nomad's named pipes."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from zlayer_driver.backends.supervised.bundle import container_id
from zlayer_driver.contract import Backend
from zlayer_driver.errors import DriverError
from zlayer_driver.model import Exit, Handle, Target, TaskSpec

_OUTPUTS: Final = ("out", "err")
_RELAY_TIMEOUT_S: Final = 60.0  # of one that is to come
_DRAIN_TIMEOUT_S: Final = 5.0  # of one whose reader does not read


class _Log:
    """A FIFO that a container writes to, and the FIFO ``….relay`` beside it, to which the relay writes once it has opened the first.

    Until then both ends of that are held here, so that nothing is lost of a container that is quick.
    """

    def __init__(self, fifo: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._held: int | None = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)
        self._relay = os.open(fifo.with_suffix(".relay"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._relayed = asyncio.Event()
        self._drained = asyncio.Event()
        self.lacks_relay = True
        try:
            os.read(self._relay, 1)
        except BlockingIOError:  # one is at work, for an agent before this one
            self.lacks_relay = False
            self._let_go()
        self._loop.add_reader(self._relay, self._hear)

    def _hear(self) -> None:
        if not os.read(self._relay, 64):
            self._loop.remove_reader(self._relay)
            self._drained.set()
        self._let_go()

    def _let_go(self) -> None:
        self._relayed.set()
        if self._held is not None:
            os.close(self._held)
            self._held = None

    async def drained(self) -> None:
        """Returns when the relay has passed everything on; at once where none is at work or was asked for."""
        if self.lacks_relay:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_RELAY_TIMEOUT_S):
                await self._relayed.wait()
            async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                await self._drained.wait()

    def close(self) -> None:
        self._loop.remove_reader(self._relay)
        os.close(self._relay)
        self._let_go()
        self._drained.set()


class Logged:
    """A backend whose containers write to FIFOs below ``directory``; the handle's data says where, for a relay to read them.

    Each start has a directory of its own below its container's, which a relay that comes late for the start before does not find.
    """

    def __init__(self, backend: Backend, directory: Path) -> None:
        self._backend = backend
        self._directory = directory
        self._logs: dict[str, dict[str, _Log]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def inner(self, handle: Handle) -> Handle:
        """As the backend itself gave it."""
        return Handle(handle.task_id, Target.PRIMARY, self._backend.name, handle.data.get("inner", {}))

    async def start(self, spec: TaskSpec) -> Mapping[str, Any]:
        self._remove(spec.id)
        directory = self._of(spec.id) / secrets.token_hex(8)
        directory.mkdir(mode=0o700, parents=True)
        out, err = (str(directory / name) for name in _OUTPUTS)
        for path in (out, err):
            os.mkfifo(path, 0o600)
            os.mkfifo(f"{path}.relay", 0o600)
        self._open(spec.id, directory)
        try:
            data = await self._backend.start(dataclasses.replace(spec, stdout_path=out, stderr_path=err))
        except (DriverError, asyncio.CancelledError):
            self._remove(spec.id)
            raise
        return {"inner": data, "logs": str(directory)}

    async def recover(self, handle: Handle) -> None:
        await self._backend.recover(handle)
        self._take_back(handle.task_id)

    async def lacking_relays(self, handle: Handle) -> Sequence[str]:
        logs = self._logs.get(handle.task_id, {})
        found = [name for name, log in logs.items() if log.lacks_relay]
        for name in found:
            logs[name].lacks_relay = False
        return found

    async def wait(self, handle: Handle) -> Exit:
        end = await self._backend.wait(handle)
        await self._drained(handle.task_id)
        return end

    async def destroy(self, handle: Handle) -> None:
        await self._backend.destroy(handle)
        await self._drained(handle.task_id)
        self._remove(handle.task_id)

    def close(self) -> None:
        for task_id in list(self._logs):
            self._close(task_id)

    def _open(self, task_id: str, directory: Path) -> None:
        self._logs[task_id] = {name: _Log(directory / name) for name in _OUTPUTS}

    def _take_back(self, task_id: str) -> None:
        """The logs, and their relays, may have been an agent's before this one."""
        if task_id not in self._logs and (directory := next(self._of(task_id).glob("*/"), None)):
            self._open(task_id, directory)

    def _close(self, task_id: str) -> None:
        for log in self._logs.pop(task_id, {}).values():
            log.close()

    async def _drained(self, task_id: str) -> None:
        self._take_back(task_id)
        await asyncio.gather(*(log.drained() for log in self._logs.get(task_id, {}).values()))

    def _of(self, task_id: str) -> Path:
        return self._directory / container_id(task_id)

    def _remove(self, task_id: str) -> None:
        self._close(task_id)
        shutil.rmtree(self._of(task_id), ignore_errors=True)
