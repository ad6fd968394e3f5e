"""Making a container is a list of named steps; removing one is the same list backwards.

Each undo works from disk alone, whether its step was done, half done or never begun, so that any process can remove what another,
killed at any moment, has left.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any

from zlayer_driver.backends import oci_conmon, oci_etc
from zlayer_driver.backends.oci_bundle import Bundle, Record, boot_id
from zlayer_driver.backends.oci_container import Container
from zlayer_driver.backends.oci_runtime import Runtime, command_fault, last_error
from zlayer_driver.backends.oci_spec import command_line, hostname, runtime_spec
from zlayer_driver.backends.oci_users import resolve
from zlayer_driver.errors import CreateFailed, InternalError, InvalidSpec, StartFailed, TimedOut
from zlayer_driver.host import cgroups, mounts, signals
from zlayer_driver.host.logs import log_ends
from zlayer_driver.host.pidfd import PidFd, ProcessId, identify
from zlayer_driver.host.processes import capture, command_lines
from zlayer_driver.image.values import Image
from zlayer_driver.model import TaskSpec

_END_TIMEOUT_S = 30.0


@dataclass(slots=True)
class Making:
    """One container in the making; ``container`` is there once its processes are, before it runs: it may be over in no time."""

    root: Path
    bundle: Bundle
    task: TaskSpec
    image: Image
    runtime: Runtime
    container: Container | None = None

    @property
    def log(self) -> Path:
        return self.bundle.dir / "runtime.log"

    @property
    def digest(self) -> str:
        """Of the spec; the same for the same spec in any process. Credentials are no part of what a container is."""
        fields = {field.name: getattr(self.task, field.name) for field in dataclasses.fields(self.task) if field.name != "auth"}
        return hashlib.sha256(json.dumps(fields, default=_plain, sort_keys=True).encode()).hexdigest()

    def close(self) -> None:
        if self.container is not None:
            self.container.close()


@dataclass(frozen=True, slots=True)
class Step:
    """``undo`` must do for a step that failed half-way, too."""

    name: str
    do: Callable[[Making], Awaitable[None]]
    undo: Callable[[Path, Bundle], Coroutine[Any, Any, None]]


def _plain(value: object) -> object:
    """The parts of a spec that JSON does not know: mappings, and frozen values in it."""
    if isinstance(value, Mapping):
        return dict(value)
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}  # type: ignore[arg-type]  # all else is a dataclass


async def make_container(making: Making, steps: tuple[Step, ...]) -> Container:
    """Runs every step; the first that fails, or is cancelled, has all up to it undone."""
    async with AsyncExitStack() as undo:
        undo.callback(making.close)
        for step in steps:
            undo.push_async_callback(_uninterrupted, step.undo, making.root, making.bundle)
            await step.do(making)
        if making.container is None:
            raise InternalError("the steps of a start made no container")
        undo.pop_all()
    return making.container


async def remove(root: Path, bundle: Bundle, steps: tuple[Step, ...]) -> None:
    """Undoes every step. The caller holds the bundle's lock. Goes on where an earlier removal was interrupted."""
    for step in reversed(steps):
        await _uninterrupted(step.undo, root, bundle)


async def _uninterrupted(undo: Callable[[Path, Bundle], Coroutine[Any, Any, None]], root: Path, bundle: Bundle) -> None:
    """A cancelled caller waits for the end of what it has begun, and is cancelled then."""
    task = asyncio.ensure_future(undo(root, bundle))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled:
        raise cancelled


# directory


async def _make_directory(making: Making) -> None:
    """The directory itself came with its lock."""
    for path in (making.bundle.exits, making.bundle.layer, making.bundle.rootfs):
        path.mkdir()
    (making.root / "rt").mkdir(0o700, exist_ok=True)


async def _remove_directory(_root: Path, bundle: Bundle) -> None:
    """By rm(1): a container may have nested directories deeper than any recursion of ours."""
    bundle.forget()
    await _erase(bundle.dir)


# rootfs


async def _mount_rootfs(making: Making) -> None:
    await asyncio.to_thread(_overlay, making.bundle, making.image)


def _overlay(bundle: Bundle, image: Image) -> None:
    upper, work = bundle.layer / "upper", bundle.layer / "work"
    upper.mkdir(0o755)
    work.mkdir(0o700)
    try:
        mounts.overlay(bundle.rootfs, lower=image.layers, upper=upper, work=work)
    except OSError as error:
        raise CreateFailed(bundle.id, f"its root file system cannot be mounted: {error}") from error


async def _unmount_rootfs(_root: Path, bundle: Bundle) -> None:
    await asyncio.to_thread(mounts.unmount, bundle.rootfs)


# config


async def _write_config(making: Making) -> None:
    bundle, task = making.bundle, making.task
    user = await asyncio.to_thread(resolve, bundle.rootfs, task.user or making.image.config.user, task.groups)
    config = runtime_spec(task, making.image.config, bundle, user)
    oci_etc.write(bundle.etc, task.network, hostname(task, bundle))
    bundle.config.write_text(json.dumps(config))


async def _nothing(_root: Path, _bundle: Bundle) -> None:
    """Goes with the directory."""


# container


async def _create(making: Making) -> None:
    bundle, runtime = making.bundle, making.runtime
    try:
        with log_ends(making.task.stdout_path, making.task.stderr_path) as ends:
            made = await oci_conmon.create(bundle, runtime.path, runtime.options(making.root, making.log), ends)
    except CreateFailed as error:
        if told := last_error(making.log):
            raise CreateFailed(bundle.id, _sentence(told, making), recoverable=error.recoverable) from error
        raise
    record = Record(runtime.path, boot_id(), made.init, made.supervisor, _stop_signal(making.image), making.digest)
    making.container = Container(bundle, record)
    bundle.write_record(record)


def _stop_signal(image: Image) -> str:
    """The image's word for how it is to be stopped; one that is no signal must not make a container that cannot be."""
    with suppress(InvalidSpec):
        return str(signals.number(image.config.stop_signal))
    return "SIGTERM"


def _sentence(told: str, making: Making) -> str:
    """What the user did, where the runtime's words show it; else the runtime's words without its own call chain."""
    command = command_line(making.task, making.image.config)[0]
    match command_fault(told):
        case 127:
            return f"command {command!r} is not in image {making.task.image!r}"
        case 126:
            return f"command {command!r} of image {making.task.image!r} may not be executed"
    return f"{making.runtime.name} says: {told.rsplit('create failed: ', maxsplit=1)[-1]}"


async def remove_container(root: Path, bundle: Bundle) -> None:
    """Ends supervisor, runtime and container, and takes away what the runtime and the kernel keep of them."""
    record = bundle.record()
    if record is not None and record.boot == boot_id():
        await _end(record.init)
        await _end(record.supervisor, kill=False)
    if record is None or not bundle.started.exists():
        await end_strays(root, bundle)
    for state in (root / "rt").glob(f"*/{bundle.id}"):
        await _delete(root, bundle, record.runtime if record else state.parent.name)
        await _erase(state)
    await cgroups.remove(bundle.cgroup)


async def _delete(root: Path, bundle: Bundle, runtime: str) -> None:
    """Its failure is no fault: what it would remove is removed after it, and a runtime may be gone from the node."""
    if path := shutil.which(runtime):
        await Runtime(path).run(root, "delete", "--force", bundle.id)


async def _end(process: ProcessId, *, kill: bool = True) -> None:
    """A supervisor is not killed at once: it goes by itself when its container does, and writes how that ended first."""
    pidfd = PidFd.open(process)
    if pidfd is None:
        return
    with pidfd:
        if kill:
            pidfd.send(SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_TIMEOUT_S):
                await pidfd.wait()
                return
        if not kill:
            pidfd.send(SIGKILL)
            return
        raise TimedOut(f"the end of process {process.pid}", _END_TIMEOUT_S)


async def end_strays(root: Path, bundle: Bundle) -> None:
    """Ends every supervisor and runtime command that a killed driver has left at work on this container."""
    while found := [process for pid in strays(root, bundle) if (process := identify(pid))]:
        for process in found:
            await _end(process)


async def settle(root: Path, bundle: Bundle, record: Record) -> None:
    """Waits for the end of what runtime commands a killed driver has left at work; they are short."""
    for pid in strays(root, bundle):
        process = identify(pid)
        pidfd = PidFd.open(process) if process and process != record.supervisor else None
        if pidfd is not None:
            with pidfd, suppress(TimeoutError):
                async with asyncio.timeout(_END_TIMEOUT_S):
                    await pidfd.wait()


def strays(root: Path, bundle: Bundle) -> list[int]:
    """Pids of commands that name both this container and our state directory."""
    name, below = bundle.id.encode(), bytes(root) + b"/"
    return [pid for pid, argv in command_lines() if name in argv and any(part.startswith(below) for part in argv)]


async def _erase(path: Path) -> None:
    """Removes a tree, and stays on its file system: what is mounted in it is not ours to empty."""
    done = await capture(["rm", "-rf", "--one-file-system", "--", str(path)])
    if done.status != 0:
        raise InternalError(f"cannot remove {path}: {done.stderr.decode('utf-8', 'replace').strip()}")


# run


async def _run(making: Making) -> None:
    bundle = making.bundle
    done = await making.runtime.run(making.root, "start", bundle.id, log=making.log)
    if done.status != 0:
        raise StartFailed(bundle.id, _sentence(last_error(making.log) or done.stderr.decode("utf-8", "replace").strip(), making))
    bundle.started.touch()


STEPS = (
    Step("directory", _make_directory, _remove_directory),
    Step("rootfs", _mount_rootfs, _unmount_rootfs),
    Step("config", _write_config, _nothing),
    Step("container", _create, remove_container),
    Step("run", _run, _nothing),
)
