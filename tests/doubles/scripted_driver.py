"""A driver without containers. A task's ``image`` says what happens to it.

``exit:N`` and ``exit:N:SIGNAL`` end at once, ``fail:KIND`` does not start, ``hold`` runs until it is stopped, and ``child`` does too but
leaves a real process behind that inherits whatever this one lets it. ``undo:PATH`` starts for ever and takes a while to undo it, ``stuck``
starts for ever in a thread. Run as a program, it is a plugin.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from zlayer_driver.config import PluginConfig
from zlayer_driver.errors import DriverError, InvalidSpec, NotFound, PullFailed, RouteToPeer, StartFailed, Unsupported
from zlayer_driver.model import (
    ExecResult,
    Exit,
    Fingerprint,
    Handle,
    Health,
    NetworkSpec,
    Target,
    TaskEvent,
    TaskRequest,
    TaskState,
    TaskStatus,
)
from zlayer_driver.readings import Channel, ExecEvent, ExecInput, UsageSample, WindowSize

AT = datetime(2026, 1, 2, 3, 4, 5, 600000, tzinfo=UTC)
FAILURES: dict[str, DriverError] = {
    "spec": InvalidSpec("the task cannot be run", hint="change it"),
    "start": StartFailed("c1", "the runtime said no\nin two lines"),
    "pull": PullFailed("alpine:3", "the registry is away", recoverable=True),
    "peer": RouteToPeer("web", "windows", "no such container here"),
    "long": StartFailed("c1", "x" * 100_000),
}


@dataclass
class Task:
    name: str
    image: str
    ended: asyncio.Future[Exit] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class ScriptedDriver:
    name = "zlayer"
    version = "0.1.0"

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.requests: list[TaskRequest] = []
        self.configs: list[tuple[PluginConfig, bool]] = []
        self.children: list[subprocess.Popen[bytes]] = []
        self.told: asyncio.Queue[TaskEvent] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.sessions = 0
        self.quiet = asyncio.Event()

    makes_networks = False

    async def create_network(self, alloc_id: str, hostname: str) -> NetworkSpec:
        raise Unsupported("this node has no overlay")

    async def destroy_network(self, alloc_id: str) -> None:
        raise Unsupported("this node has no overlay")

    async def set_config(self, config: PluginConfig, *, validate_only: bool) -> None:
        self.configs.append((config, validate_only))

    async def init(self) -> None:
        logging.getLogger("zlayer_driver.scripted").info("ready", extra={"tasks": 0})

    async def fingerprints(self) -> AsyncIterator[Fingerprint]:
        yield Fingerprint(
            Health.HEALTHY, "all well", {"driver.zlayer.version": self.version, "driver.zlayer.targets": 4, "driver.zlayer.kvm": False}
        )
        await self.ended.wait()

    async def task_address(self, request: TaskRequest) -> str:
        return str(request.config.get("address", ""))

    async def start_task(self, request: TaskRequest) -> Handle:
        self.requests.append(request)
        image = str(request.config.get("image"))
        await self.told.put(TaskEvent(request.id, request.alloc_id, request.name, f"Downloading image {image}", AT, {"image": image}))
        kind, _, what = image.partition(":")
        if kind == "fail":
            raise FAILURES[what]
        if kind == "bug":
            raise ZeroDivisionError("secret of the house")
        if kind == "undo":
            await self._start_for_ever(Path(what))
        if kind == "stuck":
            await asyncio.to_thread(threading.Event().wait)
        if kind == "child":
            self._spawn()
        self._run(request.id, request.name, image)
        data = {"image": image, "children": [child.pid for child in self.children]}
        return Handle(request.id, Target.PRIMARY, "scripted", data)

    async def _start_for_ever(self, undone: Path) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(100):
                await asyncio.to_thread(undone.parent.stat)
            undone.touch()

    def _spawn(self) -> None:
        self.children.append(subprocess.Popen(["sleep", "60"]))

    def _run(self, task_id: str, name: str, image: str) -> None:
        self.tasks[task_id] = task = Task(name, image)
        kind, *numbers = image.split(":")
        if kind == "exit":
            code, signal = (*map(int, numbers), 0)[:2]
            task.ended.set_result(Exit(code, signal))
        if kind == "lost":
            task.ended.set_result(Exit(0, error="the exit code is lost"))

    async def recover_task(self, handle: Handle, request: TaskRequest) -> None:
        self.requests.append(request)
        if handle.task_id not in self.tasks:
            self._run(handle.task_id, request.name, str(handle.data["image"]))

    def _task(self, task_id: str) -> Task:
        if task_id not in self.tasks:
            raise NotFound(task_id, "no such task")
        return self.tasks[task_id]

    async def wait_task(self, task_id: str) -> Exit:
        return await asyncio.shield(self._task(task_id).ended)

    async def stop_task(self, task_id: str, *, timeout_s: float, signal: str) -> None:
        del timeout_s
        ended = self._task(task_id).ended
        if not ended.done():
            ended.set_result(Exit(130, 2) if signal == "SIGINT" else Exit(143, 15))

    async def destroy_task(self, task_id: str) -> None:
        self._task(task_id)
        del self.tasks[task_id]

    async def inspect_task(self, task_id: str) -> TaskStatus:
        task = self._task(task_id)
        if task.ended.done():
            return TaskStatus(task_id, task.name, TaskState.EXITED, AT, AT, task.ended.result(), {"image": task.image})
        return TaskStatus(task_id, task.name, TaskState.RUNNING, AT, attributes={"image": task.image})

    async def signal_task(self, task_id: str, signal: str) -> None:
        if not signal.startswith("SIG"):
            raise InvalidSpec(f"{signal!r} is no signal", hint="use a name such as SIGHUP")
        self._task(task_id)

    async def exec_task(self, task_id: str, argv: Sequence[str], *, timeout_s: float) -> ExecResult:
        self._task(task_id)
        return ExecResult(Exit(3), " ".join(argv).encode(), f"{timeout_s:g}".encode())

    async def stream_exec(
        self, task_id: str, argv: Sequence[str], *, tty: bool, stdin: AsyncIterator[ExecInput]
    ) -> AsyncIterator[ExecEvent]:
        """Says its arguments, gives back all input in upper case and window sizes on stderr, and ends with the number of input bytes."""
        self._task(task_id)
        return self._echo(argv, stdin)

    async def _echo(self, argv: Sequence[str], stdin: AsyncIterator[ExecInput]) -> AsyncIterator[ExecEvent]:
        self.sessions += 1
        try:
            yield ExecEvent(data=" ".join(argv).encode())
            length = 0
            async for item in stdin:
                if isinstance(item, WindowSize):
                    yield ExecEvent(Channel.STDERR, f"{item.rows}x{item.columns}".encode())
                else:
                    length += len(item)
                    yield ExecEvent(data=item.upper())
            yield ExecEvent(exit_code=length % 256)
        finally:
            self.sessions -= 1
            self.quiet.set()

    async def stats(self, task_id: str) -> AsyncIterator[UsageSample]:
        if self._task(task_id).image == "no-stats":
            raise Unsupported("statistics are not available")
        return self._samples()

    async def _samples(self) -> AsyncIterator[UsageSample]:
        """Half a core in use, a fifth of it by the kernel; every second sample comes too early."""
        for at_ms, cpu_ms in ((0, 0), (10, 0), (1000, 500)):
            cpu_ns = cpu_ms * 1_000_000
            at = AT + timedelta(milliseconds=at_ms)
            yield UsageSample(at=at, cpu_total_ns=cpu_ns, cpu_system_ns=cpu_ns // 5, memory_bytes=4096, memory_limit_bytes=0)

    async def events(self) -> AsyncIterator[TaskEvent]:
        while True:
            yield await self.told.get()

    async def shutdown(self) -> None:
        self.ended.set()


if __name__ == "__main__":
    from zlayer_driver.wire import goplugin

    sys.exit(goplugin.main(ScriptedDriver))
