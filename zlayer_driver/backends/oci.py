"""Containers by an OCI runtime (crun, runc, youki) under conmon, on overlayfs root file systems."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from zlayer_driver.backends import Context
from zlayer_driver.backends.oci_bundle import Bundle, Record, boot_id, container_id
from zlayer_driver.backends.oci_conmon import conmon_path
from zlayer_driver.backends.oci_container import Container
from zlayer_driver.backends.oci_exec import execute
from zlayer_driver.backends.oci_runtime import OciRuntime, Runtime
from zlayer_driver.backends.oci_steps import STEPS, Making, Step, make_container, remove, strays
from zlayer_driver.errors import ConfigError, CreateFailed, NotFound, Unsupported
from zlayer_driver.host import cgroups, signals
from zlayer_driver.host.pidfd import PidFd, identify
from zlayer_driver.host.processes import capture
from zlayer_driver.image.values import Image
from zlayer_driver.model import (
    Auth,
    ExecResult,
    Exit,
    Fingerprint,
    Handle,
    Health,
    ImageRecord,
    PullPolicy,
    Report,
    TaskSpec,
)
from zlayer_driver.readings import ExecOptions


def make(context: Context) -> OciBackend:
    """The backend of the operator's config."""
    return OciBackend(root=context.state_dir / "oci", store=context.store, runtime=OciRuntime(context.config.oci_runtime))


class Images(Protocol):
    """What it needs of an image store; `zlayer_driver.image.store.ImageStore` has it."""

    def get(self, image: str) -> Image: ...

    def list(self) -> Sequence[ImageRecord]: ...

    async def pull(self, image: str, *, policy: PullPolicy, auth: Auth | None, report: Report | None = None) -> object: ...


class OciBackend:
    """Everything it keeps lies under ``root``; containers outlive it, and any later instance takes them back."""

    def __init__(
        self, *, name: str = "oci", root: Path, store: Images, runtime: OciRuntime | None = None, steps: tuple[Step, ...] = STEPS
    ) -> None:
        self._name = name
        self._root = root.absolute()
        self._store = store
        self._runtime = runtime or OciRuntime()
        self._steps = steps
        self._containers: dict[str, Container] = {}

    @property
    def name(self) -> str:
        return self._name

    async def probe(self) -> Fingerprint:
        if os.geteuid() != 0:
            return Fingerprint(Health.UNDETECTED, "containers need root: run the driver as root")
        conmon = conmon_path()
        if conmon is None:
            return Fingerprint(Health.UNDETECTED, "conmon is not installed: install conmon")
        try:
            runtime = await self._runtime.select()
        except (ConfigError, Unsupported) as error:
            return Fingerprint(Health.UNDETECTED, str(error))
        answer = await capture([conmon, "--version"], timeout_s=10)
        version = answer.stdout.decode("utf-8", "replace").split()[2:3]
        return Fingerprint(
            Health.HEALTHY,
            f"{runtime.name} {runtime.version}",
            {
                "runtime": runtime.name,
                "runtime.version": runtime.version,
                "conmon.version": version[0] if version else "",
                "cgroups": str(cgroups.trees().mode),
            },
        )

    async def start(self, spec: TaskSpec) -> Mapping[str, Any]:
        bundle = self._bundle(spec.id)
        image = await asyncio.to_thread(self._store.get, spec.image)
        runtime = await self._runtime.select(spec.oci_runtime)
        making = Making(self._root, bundle, spec, image, runtime)
        while True:
            async with bundle.locked(create=True):
                if spec.id in self._containers:
                    raise CreateFailed(bundle.id, "this task has a container already", hint="destroy it first")
                container = await (make_container(making, self._steps) if bundle.is_empty() else self._left_by_another(bundle))
                if container is not None:
                    self._containers[spec.id] = container
                    return container.record.data()
            # What was left is gone, and our lock with it.

    async def recover(self, handle: Handle) -> None:
        self._watched(handle)

    async def wait(self, handle: Handle) -> Exit:
        return await self._watched(handle).wait()

    async def stop(self, handle: Handle, *, timeout_s: float, signal: str) -> None:
        if signal:
            signals.number(signal)  # a name that is none is told even for a task that is gone
        try:
            container = self._watched(handle)
        except NotFound:
            return
        await container.stop(timeout_s=timeout_s, signal=signal)

    async def destroy(self, handle: Handle) -> None:
        bundle = self._bundle(handle.task_id)
        async with bundle.locked() as exists:
            if exists:
                await self._remove(handle.task_id, bundle)
        if container := self._containers.pop(handle.task_id, None):
            container.close()

    async def sweep(self) -> None:
        """Finishes what a killed predecessor left half made or half removed, and touches nothing else."""
        for path in sorted((self._root / "c").glob("*")):
            bundle = Bundle(self._root, path.name)
            lock = None if bundle.complete else bundle.try_lock()
            if lock is None:
                continue
            try:
                if container := await self._left_by_another(bundle):
                    container.close()
            finally:
                os.close(lock)

    async def signal(self, handle: Handle, signal: str) -> None:
        number = signals.number(signal or "SIGTERM")
        if not self._watched(handle).signal(number):
            raise NotFound(handle.task_id, "it has ended, and takes no signal")

    async def exec(self, handle: Handle, argv: Sequence[str], *, timeout_s: float, options: ExecOptions | None = None) -> ExecResult:
        container = self._watched(handle)
        runtime = Runtime(container.record.runtime)
        return await execute(self._root, container.bundle, runtime, argv, timeout_s=timeout_s, options=options or ExecOptions())

    async def pull(self, image: str, *, policy: PullPolicy, auth: Auth | None, report: Report | None = None) -> None:
        await self._store.pull(image, policy=policy, auth=auth, report=report)

    async def list_images(self) -> Sequence[ImageRecord]:
        return await asyncio.to_thread(self._store.list)

    def _bundle(self, task_id: str) -> Bundle:
        return Bundle(self._root, container_id(task_id))

    def _watched(self, handle: Handle) -> Container:
        """The container of a task that was started or recovered here, or is taken back now; `NotFound` if it is gone."""
        if handle.task_id in self._containers:
            return self._containers[handle.task_id]
        bundle = self._bundle(handle.task_id)
        record = Record.load(handle.data)
        if not bundle.complete or bundle.record() != record:
            raise NotFound(handle.task_id, "this node has no container of it")
        container = Container(bundle, record)
        if not container.is_there:
            container.close()
            raise NotFound(handle.task_id, "its container went with a restart of the machine")
        self._containers[handle.task_id] = container
        return container

    async def _left_by_another(self, bundle: Bundle) -> Container | None:
        """The container that a killed instance has started; what it left half made or half removed goes now.

        The caller holds the lock, so that instance is dead. Its runtime command may still be at work: only once that is over can be
        told whether the container ever ran, and a container that ran is never run again.
        """
        record = None if bundle.destroying.exists() else bundle.record()
        if record is not None and not bundle.started.exists():
            await self._settle(bundle, record)
            if await self._never_ran(bundle, record):
                record = None
            else:
                bundle.started.touch()
        if record is not None:
            return Container(bundle, record)
        await remove(self._root, bundle, self._steps)
        return None

    async def _settle(self, bundle: Bundle, record: Record) -> None:
        for pid in strays(self._root, bundle):
            process = identify(pid)
            pidfd = PidFd.open(process) if process and process != record.supervisor else None
            if pidfd is not None:
                with pidfd:
                    await pidfd.wait()

    async def _never_ran(self, bundle: Bundle, record: Record) -> bool:
        return record.boot != boot_id() or await Runtime(record.runtime).state(self._root, bundle.id) == "created"

    async def _remove(self, task_id: str, bundle: Bundle) -> None:
        bundle.destroying.touch()
        container = self._containers.get(task_id)
        if container is not None:
            await container.kill()
        await remove(self._root, bundle, self._steps)
