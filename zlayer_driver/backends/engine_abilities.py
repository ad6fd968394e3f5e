"""What is asked of an engine's container that is there: signals, commands, limits, and what the engine tells of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence

from zlayer_driver.backends.engine_api import LIBPOD
from zlayer_driver.backends.engine_container import Container, runs
from zlayer_driver.backends.engine_exec import Exec
from zlayer_driver.backends.engine_spec import limits, spec_limits
from zlayer_driver.backends.engine_streams import log_chunks, log_lines, sample, samples
from zlayer_driver.host import signals
from zlayer_driver.model import ExecResult, Handle, Resources, TaskState
from zlayer_driver.readings import ContainerDetails, ExecEvent, ExecInput, ExecOptions, LogChunk, LogLine, LogOptions, Usage, UsageSample


class EngineAbilities(ABC):
    """The abilities of `zlayer_driver.contract` that are about a container; a backend inherits them."""

    @abstractmethod
    def _container(self, handle: Handle) -> Container:
        """The very one that ``handle`` names, whether it is there or not."""

    async def signal(self, handle: Handle, signal: str) -> None:
        await self._container(handle).send(signals.number(signal or "SIGTERM"))

    async def exec(self, handle: Handle, argv: Sequence[str], *, timeout_s: float, options: ExecOptions | None = None) -> ExecResult:
        container = self._container(handle)
        command = await Exec.create(container.api, await container.id(), argv, options or ExecOptions(), stdin=False, tty=False)
        return await command.run(timeout_s)

    async def stream_exec(
        self, handle: Handle, argv: Sequence[str], *, tty: bool, stdin: AsyncIterator[ExecInput] | None = None
    ) -> AsyncIterator[ExecEvent]:
        container = self._container(handle)
        command = await Exec.create(container.api, await container.id(), argv, ExecOptions(), stdin=stdin is not None, tty=tty)
        return command.stream(stdin)

    async def pause(self, handle: Handle) -> None:
        await self._container(handle).tell("pause")

    async def resume(self, handle: Handle) -> None:
        await self._container(handle).tell("unpause")

    async def update(self, handle: Handle, resources: Resources) -> Sequence[str]:
        container = self._container(handle)
        if container.api.engine.is_podman:
            await container.tell("update", body=spec_limits(resources), prefix=LIBPOD)
            return ()
        told = await container.tell("update", body=limits(resources))
        return [str(warning) for warning in told.get("Warnings") or ()]

    async def state(self, handle: Handle) -> TaskState:
        return TaskState.RUNNING if runs((await self._container(handle).look())["State"]) else TaskState.EXITED

    async def pid(self, handle: Handle) -> int | None:
        return int((await self._container(handle).look())["State"]["Pid"]) or None

    async def inspect(self, handle: Handle) -> ContainerDetails:
        found = await self._container(handle).look()
        ended = not runs(found["State"])
        return ContainerDetails(exit_code=int(found["State"]["ExitCode"]) if ended else None, raw=found)

    async def logs(self, handle: Handle, tail: int | None = None) -> Sequence[LogLine]:
        container = self._container(handle)
        return await log_lines(container.api, await container.id(), tail)

    async def stream_logs(self, handle: Handle, options: LogOptions) -> AsyncIterator[LogChunk]:
        container = self._container(handle)
        return log_chunks(container.api, await container.id(), options)

    async def usage(self, handle: Handle) -> Usage:
        container = self._container(handle)
        return (await sample(container.api, await container.id())).usage

    async def stream_usage(self, handle: Handle) -> AsyncIterator[UsageSample]:
        container = self._container(handle)
        return samples(container.api, await container.id())
