"""Linux containers in a virtual machine each, by Apple's ``container`` 1.2 (https://github.com/apple/container), docs/command-reference.md.

::

    container create --progress none --os linux --name NAME [--env-file FILE] [--env K=V]… [OPTION…] IMAGE [ARG…]
    container start --attach NAME
    container kill --signal SIGNAL NAME
    container exec [--interactive] [--tty] [--user U] [--workdir DIR] [--env K=V]… NAME COMMAND [ARG…]
    container stats --format json --no-stream NAME
    container delete --force NAME
    container inspect NAME

``start --attach`` ends with the container's own code, 128+n where signal n ended it; the container goes on if ``start`` is killed. ``exec``
takes no ``--`` and ends with 1 for a command that does not exist. One ``stats`` takes the tool two seconds. Its services are started once
for all, by ``container system start``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Any

from zlayer_driver.backends import Context
from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.backends.tool import Interactive, Metered, Tool, ended_within
from zlayer_driver.backends.tool_exec import ToolExec
from zlayer_driver.backends.tool_job import Command, Job
from zlayer_driver.backends.tool_spec import refuse_all_but
from zlayer_driver.backends.vz_linux_create import command, environment, options
from zlayer_driver.backends.vz_linux_images import ContainerImages
from zlayer_driver.config import PluginConfig
from zlayer_driver.errors import CreateFailed, DriverError, InternalError, NotFound, StartFailed, Unsupported
from zlayer_driver.model import TaskSpec
from zlayer_driver.readings import ExecOptions, OverlayKind, UsageSample

_TOOL = Tool("container", hint="install it from https://github.com/apple/container and run: container system start")
_KILL_TIMEOUT_S = 10.0
_BOOT_STEP_S = 0.1
_ABLE = (
    *("user", "work_dir", "init", "ulimit", "shm_size", "tmpfs", "read-only mounts"),
    *("dns", "capabilities", "readonly_rootfs"),
)


def make(context: Context) -> VzLinuxBackend:
    """The backend of the operator's config."""
    return VzLinuxBackend(root=context.state_dir / "vz_linux")


def missing(_config: PluginConfig) -> str:
    """What it needs and this node lacks, with the cure."""
    return _TOOL.missing()


class VzLinuxBackend(ContainerImages, Interactive, Metered):
    def __init__(self, *, root: Path) -> None:
        super().__init__(name="vz_linux", root=root, tool=_TOOL)

    def overlay_kind(self) -> OverlayKind:
        return OverlayKind.GUEST_MANAGED

    async def _version(self) -> str:
        status = await self._tool.ask_json("system", "status", "--format", "json", failed=Unsupported)
        return str(status["apiServerVersion"]).partition(" (")[0].rpartition(" ")[2]

    async def _make(self, spec: TaskSpec, bundle: Bundle) -> Command:
        refuse_all_but(spec, _ABLE, backend="container")
        name = self._name_of(bundle)
        entrypoint, arguments = command(spec)
        argv = ["create", "--progress", "none", "--os", "linux", "--name", name]
        argv += [*environment(spec.env, bundle.dir / "env"), *options(spec)]
        argv += [*(("--entrypoint", entrypoint) if entrypoint else ()), spec.image, *arguments]
        await self._tool.ask(*argv, failed=partial(CreateFailed, spec.id), timeout_s=0)
        (made,) = await self._tool.ask_json("inspect", name, failed=partial(CreateFailed, spec.id))
        stop_signal = made["configuration"].get("stopSignal") or "SIGTERM"
        return Command(argv=[self._tool.path, "start", "--attach", name], stop_signal=stop_signal)

    async def _begun(self, spec: TaskSpec, job: Job) -> None:
        while True:
            ended = job.ended
            (found,) = await self._tool.ask_json("inspect", self._name_of(job.bundle), failed=partial(StartFailed, spec.id))
            if found["status"].get("startedDate"):
                return
            if ended:
                raise StartFailed(spec.id, "container did not start it, and tells the reason in the task's standard error")
            await ended_within(job, _BOOT_STEP_S)

    async def _unmake(self, bundle: Bundle) -> None:
        await self._tool_unless_gone("delete", "--force", self._name_of(bundle))

    async def _send(self, job: Job, number: int) -> None:
        """By its name: numbers differ between the two systems."""
        name = Signals(number).name if number in set(Signals) else str(number)
        await self._tool_unless_gone("kill", "--signal", name, self._name_of(job.bundle))

    async def _kill(self, job: Job) -> None:
        await self._send(job, SIGKILL)
        if not await ended_within(job, _KILL_TIMEOUT_S):
            await job.kill()

    async def _tool_unless_gone(self, verb: str, flag: str, *argv: str) -> None:
        with suppress(NotFound):
            await self._tool.ask(verb, flag, *argv, failed=_refused)

    def _exec(self, job: Job, argv: Sequence[str], told: ExecOptions, *, tty: bool, stdin: bool) -> ToolExec:
        flags = [*(("--interactive",) if stdin else ()), *(("--tty",) if tty else ())]
        flags += [*(("--user", told.user) if told.user else ()), *(("--workdir", told.work_dir) if told.work_dir else ())]
        flags += [part for name, value in told.env.items() for part in ("--env", f"{name}={value}")]
        return ToolExec(argv[0], [self._tool.path, "exec", *flags, self._name_of(job.bundle), *argv], _exec_fault)

    async def _sample(self, job: Job) -> UsageSample:
        found = await self._tool.ask_json("stats", "--format", "json", "--no-stream", self._name_of(job.bundle), failed=_refused)
        if not found:
            raise NotFound(job.bundle.id, "it has ended")
        return _sample(found[0])


def _refused(reason: str) -> DriverError:
    if "not found" in reason or "notFound" in reason or "no such container" in reason or "is not running" in reason:
        return NotFound("container", reason)
    return InternalError(f"container says: {reason}", hint="run: container system logs")


def _exec_fault(status: int, stderr: bytes) -> int | None:
    return 127 if status == 1 and b"failed to find target executable" in stderr else None


def _sample(told: Mapping[str, Any]) -> UsageSample:
    def number(key: str) -> int:
        return int(told.get(key) or 0)

    return UsageSample(
        at=datetime.now(UTC),
        cpu_total_ns=number("cpuUsageUsec") * 1000,
        memory_bytes=number("memoryUsageBytes"),
        memory_limit_bytes=number("memoryLimitBytes"),
        net_rx_bytes=number("networkRxBytes"),
        net_tx_bytes=number("networkTxBytes"),
        block_read_bytes=number("blockReadBytes"),
        block_write_bytes=number("blockWriteBytes"),
        pids=number("numProcesses"),
    )
