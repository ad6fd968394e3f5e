"""Containers by an OCI runtime (crun, runc, youki) under conmon, on overlayfs root file systems."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from zlayer_driver.backends import Context
from zlayer_driver.backends.oci_bundle import Bundle, Record, boot_id, container_id
from zlayer_driver.backends.oci_conmon import conmon_path
from zlayer_driver.backends.oci_container import Container
from zlayer_driver.backends.oci_exec import Exec, execute, stream
from zlayer_driver.backends.oci_resources import limits
from zlayer_driver.backends.oci_runtime import OciRuntime, Runtime, last_error
from zlayer_driver.backends.oci_steps import STEPS, Making, Step, make_container, remove, settle
from zlayer_driver.backends.oci_usage import sample, samples
from zlayer_driver.errors import ConfigError, CreateFailed, DriverError, InternalError, InvalidSpec, NotFound, Unsupported
from zlayer_driver.host import cgroups, signals
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
    PullSource,
    Report,
    Resources,
    TaskSpec,
    TaskState,
)
from zlayer_driver.readings import ExecEvent, ExecInput, ExecOptions, ImageDetails, Pruned, Usage, UsageSample

_log = logging.getLogger(__name__)


def make(context: Context) -> OciBackend:
    """The backend of the operator's config."""
    return OciBackend(
        root=context.state_dir / "oci",
        store=context.store,
        runtime=OciRuntime(context.config.oci_runtime, context.config.allow_oci_runtimes),
    )


class Images(Protocol):
    """What it needs of an image store; `zlayer_driver.image.store.ImageStore` has it."""

    def hold(self) -> AbstractContextManager[None]: ...

    def get(self, image: str) -> Image: ...

    def list(self) -> Sequence[ImageRecord]: ...

    async def pull(self, image: str, *, policy: PullPolicy, auth: Auth | None, report: Report | None = None) -> object: ...

    async def tag(self, source: str, target: str) -> object: ...

    async def remove(self, image: str) -> None: ...

    async def remove_unused(self) -> Pruned: ...


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
                **{f"runtime.{usable.name}.version": usable.version for usable in await self._runtime.usable()},
                "conmon.version": version[0] if version else "",
                "cgroups": str(cgroups.trees().mode),
            },
        )

    async def start(self, spec: TaskSpec) -> Mapping[str, Any]:
        bundle = self._bundle(spec.id)
        runtime = await self._runtime.select(spec.oci_runtime)
        with _told_as(CreateFailed, bundle), self._store.hold():
            image = await asyncio.to_thread(self._store.get, spec.image)
            container = None
            while container is None:
                async with bundle.locked(create=True):
                    container = await self._claim(Making(self._root, bundle, spec, image, runtime))
        self._forget(spec.id)  # a container that another instance has destroyed
        self._containers[spec.id] = container
        return container.record.data()

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
        with _told_as(_remove_failed, bundle):
            async with bundle.locked() as exists:
                if exists:
                    await self._remove(handle.task_id, bundle)
        self._forget(handle.task_id)

    async def sweep(self, *, orphans_after_s: float | None = None) -> None:
        for path in sorted((self._root / "c").glob("*")):
            bundle = Bundle(self._root, path.name)
            lock = None if bundle.complete else bundle.try_lock()
            if lock is None:
                continue
            try:
                if container := await self._left_by_another(bundle):
                    container.close()
            except (DriverError, OSError) as error:  # one that resists must not keep the driver from its tasks
                _log.warning("what is left of container %s cannot be removed yet: %s", bundle.id, error)
            finally:
                os.close(lock)
        if orphans_after_s is not None:
            await self._remove_orphans(orphans_after_s)

    async def _remove_orphans(self, after_s: float) -> None:
        for path in sorted((self._root / "c").glob("*")):
            bundle = Bundle(self._root, path.name)
            if not bundle.complete or not bundle.started_before(time.time() - after_s):
                continue
            try:
                if await self._removed_unkept(bundle):
                    _log.warning("container %s ran without anybody who had asked for it, and was removed", bundle.id)
            except (DriverError, OSError) as error:
                _log.warning("orphaned container %s cannot be removed yet: %s", bundle.id, error)

    async def _removed_unkept(self, bundle: Bundle) -> bool:
        lock = bundle.try_lock()
        claim = bundle.claim_unkept() if lock is not None else None
        try:
            if claim is None:
                return False
            bundle.destroying.touch()
            await remove(self._root, bundle, self._steps)
        finally:
            for fd in (lock, claim):
                if fd is not None:
                    os.close(fd)
        return True

    async def signal(self, handle: Handle, signal: str) -> None:
        number = signals.number(signal or "SIGTERM")
        if not self._watched(handle).signal(number):
            raise NotFound(handle.task_id, "it has ended, and takes no signal")

    async def exec(self, handle: Handle, argv: Sequence[str], *, timeout_s: float, options: ExecOptions | None = None) -> ExecResult:
        return await execute(self._command(handle, argv, options or ExecOptions()), timeout_s=timeout_s)

    async def stream_exec(
        self, handle: Handle, argv: Sequence[str], *, tty: bool, stdin: AsyncIterator[ExecInput] | None = None
    ) -> AsyncIterator[ExecEvent]:
        return stream(self._command(handle, argv, ExecOptions(), tty=tty), stdin, tty=tty)

    async def pause(self, handle: Handle) -> None:
        await self._told(handle, "pause")

    async def resume(self, handle: Handle) -> None:
        await self._told(handle, "resume")

    async def update(self, handle: Handle, resources: Resources) -> Sequence[str]:
        """All or nothing is changed, so there is nothing to warn of."""
        changes = self._watched(handle).bundle.dir / "update.json"
        changes.write_text(json.dumps(limits(resources)))
        await self._told(handle, "update", "--resources", str(changes))
        return ()

    async def _told(self, handle: Handle, *verb: str) -> None:
        """`InvalidSpec` in the runtime's words where it refuses."""
        container = self._watched(handle)
        if container.ended:
            raise NotFound(handle.task_id, "it has ended")
        runtime = Runtime(container.record.runtime)
        log = container.bundle.dir / f"{verb[0]}.log"
        done = await runtime.run(self._root, *verb, container.bundle.id, log=log)
        if done.status != 0:
            raise InvalidSpec(f"{runtime.name} cannot {verb[0]} container {container.bundle.id!r}: {last_error(log)}")

    async def usage(self, handle: Handle) -> Usage:
        now = sample(self._watched(handle))
        return Usage(now.cpu_total_ns // 1000, now.memory_bytes, now.memory_limit_bytes)

    async def stream_usage(self, handle: Handle) -> AsyncIterator[UsageSample]:
        return samples(self._watched(handle))

    async def state(self, handle: Handle) -> TaskState:
        return TaskState.EXITED if self._watched(handle).ended else TaskState.RUNNING

    async def pid(self, handle: Handle) -> int | None:
        container = self._watched(handle)
        return None if container.ended else container.record.init.pid

    def _command(self, handle: Handle, argv: Sequence[str], options: ExecOptions, *, tty: bool = False) -> Exec:
        container = self._watched(handle)
        return Exec(self._root, container.bundle, Runtime(container.record.runtime), argv, options, tty=tty)

    async def pull(
        self,
        image: str,
        *,
        policy: PullPolicy,
        auth: Auth | None,
        report: Report | None = None,
        source: PullSource = PullSource.LOCAL_FIRST,
    ) -> None:
        await self._store.pull(image, policy=PullPolicy.NEVER if source is PullSource.LOCAL_ONLY else policy, auth=auth, report=report)

    async def list_images(self) -> Sequence[ImageRecord]:
        return await asyncio.to_thread(self._store.list)

    async def has_image(self, image: str) -> bool:
        with suppress(NotFound):
            return bool(self._store.get(image))
        return False

    async def inspect_image(self, image: str) -> ImageDetails:
        found = await asyncio.to_thread(self._store.get, image)
        return ImageDetails(found.digest, found.config.os, asdict(found.config))

    async def tag_image(self, source: str, target: str) -> None:
        await self._store.tag(source, target)

    async def remove_image(self, image: str, *, force: bool) -> None:
        """A container that runs from the image keeps its layers, so there is nothing to force."""
        del force
        await self._store.remove(image)

    async def prune_images(self) -> Pruned:
        return await self._store.remove_unused()

    def image_store(self) -> object:
        return self._store

    def _bundle(self, task_id: str) -> Bundle:
        return Bundle(self._root, container_id(task_id))

    def _watched(self, handle: Handle) -> Container:
        """The container of a task that was started or recovered here, or is taken back now; `NotFound` if it is gone."""
        if handle.task_id in self._containers:
            return self._containers[handle.task_id]
        bundle = self._bundle(handle.task_id)
        if not bundle.complete or bundle.record() != (record := Record.load(handle.data)):
            raise NotFound(handle.task_id, "this node has no container of it")
        container = Container(bundle, record)
        if not container.is_there or not container.is_kept:
            container.close()
            why = "is being removed: nobody had asked for it" if container.is_there else "went with a restart of the machine"
            raise NotFound(handle.task_id, f"its container {why}")
        self._containers[handle.task_id] = container
        return container

    async def _claim(self, making: Making) -> Container | None:
        """The container of a start; ``None`` if another was in the way: it is gone now, and the lock that the caller holds with it."""
        task_id, bundle = making.task.id, making.bundle
        if bundle.is_empty():
            return await make_container(making, self._steps)
        if task_id in self._containers:
            await self._remove(task_id, bundle)
            self._forget(task_id)
            return None
        return await self._left_by_another(bundle, making.digest)

    async def _left_by_another(self, bundle: Bundle, digest: str | None = None) -> Container | None:
        """The container that a killed instance has started (for this very spec, if one is named); anything else of it is removed.

        The caller holds the lock, so that instance is dead. Its runtime command may still be at work: only once that is over can be
        told whether the container ever ran, and a container that ran is never run again for the same spec.
        """
        record = None if bundle.destroying.exists() else bundle.record()
        if record is not None and digest in (None, record.spec) and await self._ran(bundle, record):
            return Container(bundle, record)
        await remove(self._root, bundle, self._steps)
        return None

    async def _ran(self, bundle: Bundle, record: Record) -> bool:
        if bundle.started.exists():
            return True
        await settle(self._root, bundle, record)
        if record.boot != boot_id() or await Runtime(record.runtime).state(self._root, bundle.id) == "created":
            return False
        bundle.started.touch()
        return True

    async def _remove(self, task_id: str, bundle: Bundle) -> None:
        bundle.destroying.touch()
        container = self._containers.get(task_id)
        if container is not None:
            await container.kill()
        await remove(self._root, bundle, self._steps)

    def _forget(self, task_id: str) -> None:
        if container := self._containers.pop(task_id, None):
            container.close()


@contextmanager
def _told_as(kind: Callable[[str, str], DriverError], bundle: Bundle) -> Iterator[None]:
    """What the kernel refuses, such as room on a disk, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise kind(bundle.id, f"{error.strerror}{f': {error.filename}' if error.filename else ''}") from error


def _remove_failed(container: str, reason: str) -> DriverError:
    return InternalError(f"cannot remove container {container!r}: {reason}", hint="destroy the task again")
