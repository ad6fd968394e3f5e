"""What the services ask of the driver below them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from zlayer_driver.config import PluginConfig
from zlayer_driver.model import ExecResult, Exit, Fingerprint, Handle, NetworkSpec, TaskEvent, TaskRequest, TaskStatus
from zlayer_driver.readings import ExecEvent, ExecInput, UsageSample


class DriverVerbs(Protocol):
    """The verbs of `zlayer_driver.driver.Driver` that Nomad can reach. Errors are those of `zlayer_driver.errors`."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    async def set_config(self, config: PluginConfig, *, validate_only: bool) -> None:
        """May come twice, and without `init` after it: no side effects."""
        ...

    async def init(self) -> None: ...

    def fingerprints(self) -> AsyncIterator[Fingerprint]:
        """The first at once, then one whenever something changed."""
        ...

    async def start_task(self, request: TaskRequest) -> Handle: ...

    async def task_address(self, request: TaskRequest) -> str:
        """Where the task is reached at its ports' own numbers; empty where the node's address is what counts."""
        ...

    async def recover_task(self, handle: Handle, request: TaskRequest) -> None:
        """``request.config`` is empty after a restart of the agent."""
        ...

    async def wait_task(self, task_id: str) -> Exit: ...

    async def stop_task(self, task_id: str, *, timeout_s: float, signal: str) -> None: ...

    async def destroy_task(self, task_id: str) -> None: ...

    async def inspect_task(self, task_id: str) -> TaskStatus: ...

    async def signal_task(self, task_id: str, signal: str) -> None: ...

    async def exec_task(self, task_id: str, argv: Sequence[str], *, timeout_s: float) -> ExecResult: ...

    async def stream_exec(
        self, task_id: str, argv: Sequence[str], *, tty: bool, stdin: AsyncIterator[ExecInput]
    ) -> AsyncIterator[ExecEvent]:
        """Output as it comes, then the exit. Closing the iterator kills the command."""
        ...

    async def stats(self, task_id: str) -> AsyncIterator[UsageSample]:
        """What the task uses, a sample at once; further ones at the backend's own pace, or none."""
        ...

    @property
    def makes_networks(self) -> bool:
        """Whether Nomad has the two verbs below make the networks of allocations; told before `init`, too."""
        ...

    async def create_network(self, alloc_id: str, hostname: str) -> NetworkSpec:
        """The allocation's network; the same again while it has one."""
        ...

    async def destroy_network(self, alloc_id: str) -> None: ...

    def events(self) -> AsyncIterator[TaskEvent]: ...

    async def shutdown(self) -> None:
        """Ends the iterators above and lets go of the tasks, which run on. May come twice."""
        ...
