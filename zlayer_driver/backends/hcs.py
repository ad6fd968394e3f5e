r"""Windows containers by containerd's ``ctr`` and the runhcs shim, in a silo of the node's kernel or in a Hyper-V VM each.

Written to containerd 2.3 (`cmd/ctr`, whose maintainers call it unsupported: its flags are checked against that source) and hcsshim 0.14
(`cmd/containerd-shim-runhcs-v1`). Every command line begins with
``ctr.exe --address \\.\pipe\containerd-containerd --namespace zlayer`` and goes on with one of

::

    version · images list|pull|tag|delete|prune · content get DIGEST · tasks list
    run --detach --runtime io.containerd.runhcs.v1 --snapshotter windows --log-uri binary:///… --env-file F --label … [--isolated] [--cni]
        [--cwd D] [--user U] [--memory-limit N] [--cpu-max N | --cpu-shares N] [--mount …]… IMAGE ID [COMMAND ARG…]
    tasks kill --signal N ID · tasks delete [--force] ID · containers delete ID
    tasks exec --exec-id E [--cwd D] [--user U] ID COMMAND ARG… · tasks metrics ID · events FILTER… · containers label ID K=V

The shim is the supervisor: it outlives driver and ctr, has the container's output copied by a logging driver of ours (`hcs_logs`), and keeps
the exit code until ``tasks delete``, which tells it in a warning. That is written down here before anybody hears of it.

Windows has no signals: the shim takes 15 and 6 for CTRL_SHUTDOWN, 1 for CTRL_BREAK, 2 for CTRL_CLOSE, 5 for CTRL_LOGOFF, and ends the
process at 9. ctr removes a container's network at the first signal that it is asked to send. What the shim refuses (pausing) or ctr has no
word for (changing limits, a terminal from afar) is no ability here.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

from zlayer_driver.backends import Context
from zlayer_driver.backends.hcs_container import Container
from zlayer_driver.backends.hcs_ctr import HINT, KILL, Ctr, Exits
from zlayer_driver.backends.hcs_exec import execute
from zlayer_driver.backends.hcs_images import CtrImages
from zlayer_driver.backends.hcs_run import arguments, isolated
from zlayer_driver.errors import CreateFailed, DriverError, InvalidSpec, NotFound, TimedOut, Unsupported
from zlayer_driver.model import ExecResult, Exit, Fingerprint, Handle, Health, TaskSpec, TaskState
from zlayer_driver.readings import ExecOptions, Usage

_SIGNALS: Final = {"HUP": 1, "INT": 2, "TRAP": 5, "ABRT": 6, "KILL": KILL, "TERM": 15}


def make(context: Context) -> HcsBackend:
    """The backend of the operator's config."""
    return HcsBackend(root=context.state_dir / "hcs", build=platform.version(), insecure=context.config.insecure_registries)


class HcsBackend(CtrImages):
    """``build`` is the node's Windows version, such as ``10.0.20348``."""

    name = "hcs"

    def __init__(self, *, root: Path, build: str, insecure: Sequence[str] = ()) -> None:
        super().__init__(Ctr(), build=build, insecure=insecure)
        self._root = root
        self._exits = Exits(self._ctr)
        self._containers: WeakValueDictionary[str, Container] = WeakValueDictionary()  # of those who wait

    async def probe(self) -> Fingerprint:
        try:
            version = await self._ctr.version()
        except (Unsupported, TimedOut) as error:
            return Fingerprint(Health.UNDETECTED, f"{error}: {HINT}")
        return Fingerprint(Health.HEALTHY, f"containerd {version}", {"containerd.version": version, "windows.version": self._build})

    async def start(self, spec: TaskSpec) -> Mapping[str, Any]:
        container = self._of(spec.id)
        if container.dir.exists():
            await container.remove()
        try:
            config = await self.config(spec.image)
            container.dir.mkdir(mode=0o700, parents=True)
            words = arguments(spec, container.id, config, container.dir, isolate=isolated(spec, config, self._build))
            await self._ctr.ask(*words, failed=partial(CreateFailed, spec.id), timeout_s=0)
        except (DriverError, asyncio.CancelledError):
            await container.remove()
            raise
        return container.record()

    async def recover(self, handle: Handle) -> None:
        container = self._had(handle)
        if container.ended() is None and await self._ctr.task(container.id) is None:
            raise NotFound(handle.task_id, "its container went with a restart of the machine")

    async def wait(self, handle: Handle) -> Exit:
        return await self._had(handle).wait()

    async def stop(self, handle: Handle, *, timeout_s: float, signal: str) -> None:
        number = _number(signal)
        try:
            container = self._had(handle)
            await container.signal(number)
        except NotFound:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await container.wait()
        await container.kill()

    async def destroy(self, handle: Handle) -> None:
        await self._of(handle.task_id).remove()

    async def signal(self, handle: Handle, signal: str) -> None:
        number = _number(signal)
        await self._had(handle).signal(number)

    async def exec(self, handle: Handle, argv: Sequence[str], *, timeout_s: float, options: ExecOptions | None = None) -> ExecResult:
        container = self._had(handle)
        if not await container.running():
            raise NotFound(handle.task_id, "it has ended")
        return await execute(self._ctr, container.id, argv, options or ExecOptions(), timeout_s=timeout_s)

    async def state(self, handle: Handle) -> TaskState:
        return TaskState.RUNNING if await self._had(handle).running() else TaskState.EXITED

    async def pid(self, handle: Handle) -> int | None:
        task = await self._ctr.task(self._had(handle).id)
        return task.pid if task else None

    async def usage(self, handle: Handle) -> Usage:
        told = await self._ctr.ask("tasks", "metrics", self._had(handle).id, failed=partial(NotFound, handle.task_id))
        numbers = {row[0]: int(row[1]) for line in told.splitlines() if len(row := line.split()) == 2 and row[1].isdecimal()}
        return Usage(numbers.get("cpu.total_runtime_ns", 0) // 1000, numbers.get("memory.private_working_set_bytes", 0), 0)

    async def close(self) -> None:
        """Stops listening; containers go on."""
        await self._exits.close()

    def _of(self, task_id: str) -> Container:
        return self._containers.setdefault(task_id, Container(self._root, task_id, self._ctr, self._exits))

    def _had(self, handle: Handle) -> Container:
        """`NotFound` if this node has no container of it."""
        container = self._of(handle.task_id)
        container.check(handle)
        return container


def _number(signal: str) -> int:
    """What the shim takes; `InvalidSpec` for all else."""
    word = signal.strip().upper().removeprefix("SIG") or "TERM"
    number = int(word) if word.isascii() and word.isdecimal() else _SIGNALS.get(word, 0)
    if number not in _SIGNALS.values():
        raise InvalidSpec(f"{signal!r} is no signal that Windows knows", hint=f"use one of {', '.join(f'SIG{name}' for name in _SIGNALS)}")
    return number
