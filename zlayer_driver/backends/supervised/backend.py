"""The verbs of a backend whose containers live under conmon."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zlayer_driver.backends.stored_images import Images, StoredImages
from zlayer_driver.backends.supervised.bundle import Bundle, Record, boot_id, container_id
from zlayer_driver.backends.supervised.conmon import conmon_path
from zlayer_driver.backends.supervised.container import Container
from zlayer_driver.backends.supervised.making import Making, Step, make_container, remove
from zlayer_driver.backends.supervised.runtime import Runtime
from zlayer_driver.errors import CreateFailed, DriverError, InternalError, NotFound
from zlayer_driver.host import cgroups, signals
from zlayer_driver.host.processes import capture
from zlayer_driver.model import Exit, Fingerprint, Handle, Health, TaskSpec, TaskState

_log = logging.getLogger(__name__)


class Supervised(StoredImages, ABC):
    """Everything it keeps lies under ``root``; containers outlive it, and any later instance takes them back."""

    def __init__(self, *, name: str, root: Path, store: Images, steps: tuple[Step, ...]) -> None:
        super().__init__(store)
        self._name = name
        self._root = root.absolute()
        self._steps = steps
        self._containers: dict[str, Container] = {}

    @property
    def name(self) -> str:
        return self._name

    @abstractmethod
    async def _runtime_for(self, spec: TaskSpec) -> Runtime:
        """What makes this container; an error of ours, with the cure, where nothing can."""

    @abstractmethod
    def _runtime_of(self, record: Record) -> Runtime:
        """What has made this one."""

    async def probe(self) -> Fingerprint:
        """What all of them need of a node."""
        if os.geteuid() != 0:
            return Fingerprint(Health.UNDETECTED, "containers need root: run the driver as root")
        conmon = conmon_path()
        if conmon is None:
            return Fingerprint(Health.UNDETECTED, "conmon is not installed: install conmon")
        answer = await capture([conmon, "--version"], timeout_s=10)
        version = answer.stdout.decode("utf-8", "replace").split()[2:3]
        attributes = {"conmon.version": version[0] if version else "", "cgroups": str(cgroups.trees().mode)}
        return Fingerprint(Health.HEALTHY, "", attributes)

    async def start(self, spec: TaskSpec) -> Mapping[str, Any]:
        bundle = self._bundle(spec.id)
        asyncio.get_running_loop().run_in_executor(None, cgroups.awaken)
        runtime = await self._runtime_for(spec)
        with _told_as(CreateFailed, bundle), self._store.hold():
            image = await asyncio.to_thread(self._store.get, spec.image)
            container = None
            while container is None:
                async with bundle.locked(create=True):
                    container = await self._claim(Making(bundle, spec, image, runtime))
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
            await remove(bundle, self._steps)
        finally:
            for fd in (lock, claim):
                if fd is not None:
                    os.close(fd)
        return True

    async def signal(self, handle: Handle, signal: str) -> None:
        number = signals.number(signal or "SIGTERM")
        if not await self._watched(handle).signal(number):
            raise NotFound(handle.task_id, "it has ended, and takes no signal")

    async def state(self, handle: Handle) -> TaskState:
        return TaskState.EXITED if self._watched(handle).ended else TaskState.RUNNING

    async def pid(self, handle: Handle) -> int | None:
        container = self._watched(handle)
        return None if container.ended else container.record.init.pid

    def _bundle(self, task_id: str) -> Bundle:
        return Bundle(self._root, container_id(task_id))

    def _watched(self, handle: Handle) -> Container:
        """The container of a task that was started or recovered here, or is taken back now; `NotFound` if it is gone."""
        if handle.task_id in self._containers:
            return self._containers[handle.task_id]
        bundle = self._bundle(handle.task_id)
        if not bundle.complete or bundle.record() != (record := Record.load(handle.data)):
            raise NotFound(handle.task_id, "this node has no container of it")
        container = Container(bundle, record, self._runtime_of(record))
        if not container.is_there or not container.is_kept:
            container.close()
            why = "is being removed: nobody had asked for it" if container.is_there else "went with a restart of the machine"
            raise NotFound(handle.task_id, f"its container {why}")
        self._containers[handle.task_id] = container
        return container

    def _running(self, handle: Handle) -> Container:
        container = self._watched(handle)
        if container.ended:
            raise NotFound(handle.task_id, "it has ended")
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

        The caller holds the lock, so that instance is dead. What it called may still be at work: only once that is over can be
        told whether the container ever ran, and a container that ran is never run again for the same spec.
        """
        record = None if bundle.destroying.exists() else bundle.record()
        if record is not None and digest in (None, record.spec) and await self._ran(bundle, record):
            return Container(bundle, record, self._runtime_of(record))
        await remove(bundle, self._steps)
        return None

    async def _ran(self, bundle: Bundle, record: Record) -> bool:
        if bundle.started.exists():
            return True
        if record.boot != boot_id() or not await self._runtime_of(record).ran(bundle, record):
            return False
        bundle.started.touch()
        return True

    async def _remove(self, task_id: str, bundle: Bundle) -> None:
        bundle.destroying.touch()
        container = self._containers.get(task_id)
        if container is not None:
            await container.kill()
        await remove(bundle, self._steps)

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
