"""The driver's verbs in our own words. The wire calls these for Nomad, and the command line for people.

`Driver.set_config` may come twice and in a process that is thrown away, so nothing of the machine is touched before `Driver.init`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from zlayer_driver import __version__
from zlayer_driver.admission import admit
from zlayer_driver.choice import Request
from zlayer_driver.config import OverlayBlock, PluginConfig, TaskConfig
from zlayer_driver.contract import CanStreamExec, CanUpdate, HasImageStore
from zlayer_driver.cores import SharedCores
from zlayer_driver.errors import NotFound, TimedOut, Unsupported
from zlayer_driver.host import cgroups, logs
from zlayer_driver.image.sources import is_local
from zlayer_driver.model import (
    OS,
    ExecResult,
    Exit,
    Fingerprint,
    Handle,
    NetworkSpec,
    PullProgress,
    Report,
    Resources,
    Target,
    TaskEvent,
    TaskRequest,
    TaskSpec,
    TaskStatus,
)
from zlayer_driver.node import Node
from zlayer_driver.overlay.networks import Networks, directory
from zlayer_driver.overlay.overlay import Overlay
from zlayer_driver.readings import ExecEvent, ExecInput, UsageSample
from zlayer_driver.tasks import Events, PullReport, TaskTable

_PROBE_EVERY_S = 30.0


class Membership(Protocol):
    """A node's place in the overlay; `zlayer_driver.nomad.membership` has it."""

    async def overlay(self) -> Overlay: ...

    async def close(self) -> None: ...


Join = Callable[[OverlayBlock, Path], Membership]


class Driver:
    """One node's driver: what Nomad calls, and nothing of how it calls."""

    name = "zlayer"
    version = __version__

    def __init__(self, join: Join | None = None, *, native_os: OS | None = None) -> None:
        """``join`` brings this node into its overlay; it is called only if the operator configured one. ``native_os`` as of `Node`."""
        self.config = PluginConfig()
        self._native_os = native_os
        self._node: Node | None = None
        self._join = join
        self._membership: Membership | None = None
        self._tasks = TaskTable(self._owner_says)
        self._events = Events()
        self._cores = SharedCores(self._update)
        self._closing = asyncio.Event()

    async def set_config(self, config: PluginConfig, *, validate_only: bool) -> None:
        """Keeps the operator's block; the same may come again."""
        if not validate_only and self._node is None:
            self.config = config

    async def init(self) -> None:
        """Assembles the backends and finishes what a killed predecessor left half done. Repeated calls change nothing."""
        TaskConfig.model_rebuild()  # before a task waits for it
        if self._node is None:
            await self.node.sweep()
        if self._membership is None and self._join is not None and self.config.overlay is not None:
            self._membership = self._join(self.config.overlay, Path(self.config.state_dir))

    @property
    def node(self) -> Node:
        """What this node is made of; assembled at the first use."""
        if self._node is None:
            self._node = Node(self.config, native_os=self._native_os, on_fallback=self._tell_fallback)
        return self._node

    async def fingerprints(self) -> AsyncIterator[Fingerprint]:
        """What this node offers: at once, then whenever it changes, until `shutdown`. An attribute that it has no more is told as empty.

        Only an agent listens. It asks for all its tasks again as soon as it is there, so a container that nobody has asked for after it
        has listened for ``orphan_grace`` is an orphan. Without an agent, as in a command of the CLI, none is ever removed.
        """
        await self.node.pin_images()
        last, known, grace_s = None, dict[str, object](), self.config.orphan_grace
        patient_until = time.monotonic() + grace_s
        while not self._closing.is_set():
            if (found := await self.node.fingerprint()) != last:
                known.update(found.attributes)
                yield replace(found, attributes={**dict.fromkeys(known, ""), **found.attributes})
                last = found
            await _wait_at_most(self._closing, _PROBE_EVERY_S)
            if grace_s and time.monotonic() >= patient_until:
                await self.node.sweep(orphans_after_s=grace_s)

    async def start_task(self, request: TaskRequest) -> Handle:
        """Pulls what is needed, chooses, starts. On failure nothing of the task is left, here or in the table."""
        try:
            return await self._start(admit(request, self.config), request)
        except BaseException:
            logs.hang_up(request.stdout_path, request.stderr_path)
            raise

    async def _start(self, spec: TaskSpec, request: TaskRequest) -> Handle:
        self._tasks.begin(spec.id, name=spec.name, alloc_id=request.alloc_id)
        try:
            spec = await self._pull(spec)
            await self._publish(request)
            cpus = cgroups.cpus(spec.resources.cpuset_group)
            handle = await self.node.composite.create(spec)
        except BaseException:
            self._tasks.drop(spec.id)
            raise
        self._tasks.running(spec.id, handle)
        self._cores.add(spec.id, spec.resources, cpus)
        return handle

    async def task_address(self, request: TaskRequest) -> str:
        """Its allocation's address in the overlay, if its network is the overlay's."""
        if not self._is_on_overlay(request):
            return ""
        return str((await (await self._networks()).find(request.alloc_id)).addresses[0])

    async def _publish(self, request: TaskRequest) -> None:
        """Makes the ports of the task's group lead to its network, if that is the overlay's."""
        if request.ports and self._is_on_overlay(request):
            await (await self._networks()).publish(request.alloc_id, request.ports)

    def _is_on_overlay(self, request: TaskRequest) -> bool:
        return Path(request.network.netns_path).parent == directory(Path(self.config.state_dir))

    async def recover_task(self, handle: Handle, request: TaskRequest) -> None:
        """Takes a task back that an earlier process started; of a task known already, nothing changes."""
        if handle.task_id not in self._tasks:
            await self.node.composite.adopt(handle)
            self._tasks.recovered(handle, name=request.name, alloc_id=request.alloc_id)
            self._cores.add(handle.task_id, request.resources)

    async def wait_task(self, task_id: str) -> Exit:
        return await self._tasks.exited(task_id)

    async def stop_task(self, task_id: str, *, timeout_s: float, signal: str) -> None:
        """Returns when the task has stopped. A task that is not here has stopped."""
        if task_id in self._tasks:
            await self.node.composite.stop(task_id, timeout_s=timeout_s, signal=signal)

    async def destroy_task(self, task_id: str) -> None:
        """Removes all of a task. Of an unknown one, whatever an earlier process may have left under its id."""
        try:
            await self.node.composite.destroy(task_id)
        except NotFound:
            await self.node.composite.purge(task_id)
        finally:
            self._cores.drop(task_id)
            self._tasks.drop(task_id)

    async def inspect_task(self, task_id: str) -> TaskStatus:
        return self._tasks.status(task_id)

    async def signal_task(self, task_id: str, signal: str) -> None:
        await self.node.composite.signal(task_id, signal)

    async def exec_task(self, task_id: str, argv: Sequence[str], *, timeout_s: float) -> ExecResult:
        return await self.node.composite.exec(task_id, argv, timeout_s=timeout_s)

    async def stream_exec(
        self, task_id: str, argv: Sequence[str], *, tty: bool, stdin: AsyncIterator[ExecInput]
    ) -> AsyncIterator[ExecEvent]:
        return await self.node.composite.forward(task_id, CanStreamExec.stream_exec, argv, tty=tty, stdin=stdin)

    async def stats(self, task_id: str) -> AsyncIterator[UsageSample]:
        return await self.node.composite.stream_usage(task_id)

    @property
    def makes_networks(self) -> bool:
        """Whether the networks of allocations are this driver's to make."""
        return self.config.overlay is not None

    async def create_network(self, alloc_id: str, hostname: str) -> NetworkSpec:
        """The allocation's namespace on the overlay: the one it has, else a new one."""
        return await (await self._networks()).create(alloc_id, hostname)

    async def destroy_network(self, alloc_id: str) -> None:
        await (await self._networks()).destroy(alloc_id)

    async def _networks(self) -> Networks:
        if self._membership is None:
            raise Unsupported(
                "this node has no overlay", hint="set overlay in the plugin's config, or use network mode bridge, host or none"
            )
        return Networks(await self._membership.overlay())

    def events(self) -> AsyncIterator[TaskEvent]:
        return self._events.read()

    async def shutdown(self) -> None:
        """Ends the streams and lets go of everything; containers stay."""
        self._closing.set()
        self._events.close()
        await self._cores.close()
        await self._tasks.close()
        if self._membership is not None:
            await self._membership.close()
        if self._node is not None:
            await self._node.close()

    async def _owner_says(self, task_id: str) -> Exit:
        ended = await self.node.composite.wait(task_id)
        if ended.oom_killed:
            self._tell(task_id, "Out of memory: the kernel killed it at its memory limit", {"oom_killed": "true"})
        return ended

    async def _update(self, task_id: str, resources: Resources) -> object:
        return await self.node.composite.forward(task_id, CanUpdate.update, resources)

    async def _pull(self, spec: TaskSpec) -> TaskSpec:
        """The task with its image here; one that it brings itself has its name in our store from now on."""
        loop = asyncio.get_running_loop()
        pulled = PullReport(lambda message: self._tell(spec.id, message, {"image": spec.image}), loop.time)

        def report(step: PullProgress) -> None:  # from any thread
            loop.call_soon_threadsafe(pulled.take, step)

        try:
            async with asyncio.timeout(spec.pull_timeout_s or None):
                if is_local(spec.image):
                    return await self._brought(spec, report)
                await self.node.composite.pull(spec.image, policy=spec.pull, auth=spec.auth, report=report)
        except TimeoutError:
            raise TimedOut(f"the pull of image {spec.image!r}", spec.pull_timeout_s, hint="raise image_pull_timeout") from None
        return spec

    async def _brought(self, spec: TaskSpec, report: Report) -> TaskSpec:
        """A task with the image that it brings. Only what runs from our store has that image: engines keep their own."""
        root = Path(spec.image_root) if spec.image_root else None
        image = await self.node.store.import_of_task(spec.image, root, report=report)
        brought = replace(spec, image=image.reference)
        composite = self.node.composite
        target = composite.decide(Request.of(brought), await composite.facts(brought.image)).target
        backend = self.node.backends[target]
        if not isinstance(backend, HasImageStore):
            raise Unsupported(
                f"the task brings its image ({spec.image}), and {backend.name}, which is to run it, keeps its images itself",
                hint="push the image to a registry and name it by its reference, or let a target run it that uses the driver's own store",
            )
        return brought

    def _tell_fallback(self, spec: TaskSpec, failed: Target, taken: Target, error: Exception) -> None:
        message = f"Could not create the container on {failed} ({error}); {taken} takes it"
        self._tell(spec.id, message, {"failed": failed, "target": taken})

    def _tell(self, task_id: str, message: str, annotations: dict[str, str]) -> None:
        if task_id in self._tasks:
            alloc_id, name = self._tasks.label(task_id)
            self._events.emit(TaskEvent(task_id, alloc_id, name, message, datetime.now(UTC), annotations))


async def _wait_at_most(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
