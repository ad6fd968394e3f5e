"""The steps that every supervised container is made by; a backend puts its own between them."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL

from zlayer_driver.backends.supervised import conmon, etc
from zlayer_driver.backends.supervised.bundle import Bundle, Record, boot_id
from zlayer_driver.backends.supervised.container import Container
from zlayer_driver.backends.supervised.making import Making, Step
from zlayer_driver.backends.supervised.runtime import command_fault, last_error
from zlayer_driver.backends.supervised.spec import command_line, hostname, runtime_spec
from zlayer_driver.backends.supervised.users import resolve
from zlayer_driver.errors import CreateFailed, InternalError, InvalidSpec, StartFailed, TimedOut
from zlayer_driver.host import cgroups, mounts, signals
from zlayer_driver.host.logs import log_ends
from zlayer_driver.host.pidfd import PidFd, ProcessId, identify
from zlayer_driver.host.processes import capture, command_lines
from zlayer_driver.image.values import Image

END_TIMEOUT_S = 30.0


# directory


async def _make_directory(making: Making) -> None:
    """The directory itself came with its lock."""
    for path in (making.bundle.exits, making.bundle.layer, making.bundle.rootfs):
        path.mkdir()


async def _remove_directory(bundle: Bundle) -> None:
    bundle.forget()
    await erase(bundle.dir)


async def erase(path: Path) -> None:
    """Removes a tree, and stays on its file system: what is mounted in it is not ours to empty.

    By rm(1): a container may have nested directories deeper than any recursion of ours.
    """
    done = await capture(["rm", "-rf", "--one-file-system", "--", str(path)])
    if done.status != 0:
        raise InternalError(f"cannot remove {path}: {done.stderr.decode('utf-8', 'replace').strip()}")


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


async def _unmount_rootfs(bundle: Bundle) -> None:
    await asyncio.to_thread(mounts.unmount, bundle.rootfs)


# config


async def _write_config(making: Making) -> None:
    bundle, task = making.bundle, making.task
    user = await asyncio.to_thread(resolve, bundle.rootfs, task.user or making.image.config.user, task.groups)
    config = runtime_spec(task, making.image.config, bundle, user, making.runtime.capabilities)
    etc.write(bundle.etc, task.network, hostname(task, bundle))
    bundle.config.write_text(json.dumps(config))


async def nothing(_bundle: Bundle) -> None:
    """The undo of a step that goes with the directory."""


# container


async def _hold(making: Making) -> None:
    """Its program starts while root file system and config are made."""
    making.held = _held(making)


def _held(making: Making) -> conmon.Held:
    with log_ends(making.task.stdout_path, making.task.stderr_path) as ends:
        return conmon.hold(making.bundle, making.runtime.path, making.runtime.options(making.bundle, making.log), ends)


async def _release(bundle: Bundle) -> None:
    if bundle.record() is None:
        await end_strays(bundle)


async def _create(making: Making) -> None:
    bundle, runtime = making.bundle, making.runtime
    making.held = making.held or _held(making)
    try:
        made = await making.held.create()
    except CreateFailed as error:
        if told := last_error(making.log):
            raise CreateFailed(bundle.id, _sentence(told, making), recoverable=error.recoverable) from error
        raise
    making.let_go()
    record = Record(runtime.path, runtime.kind, boot_id(), made.init, made.supervisor, _stop_signal(making.image), making.digest)
    making.container = Container(bundle, record, runtime)
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


async def remove_container(bundle: Bundle) -> None:
    """Ends supervisor, runtime and container, and takes away what the kernel keeps of them."""
    await end_processes(bundle)
    await cgroups.remove(bundle.cgroup)


async def end_processes(bundle: Bundle) -> None:
    record = bundle.record()
    if record is not None and record.boot == boot_id():
        await _end(record.init)
        await _end(record.supervisor, kill=False)
    if record is None or not bundle.started.exists():
        await end_strays(bundle)


async def _end(process: ProcessId, *, kill: bool = True) -> None:
    """A supervisor is not killed at once: it goes by itself when its container does, and writes how that ended first."""
    pidfd = PidFd.open(process)
    if pidfd is None:
        return
    with pidfd:
        if kill:
            pidfd.send(SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                await pidfd.wait()
                return
        if not kill:
            pidfd.send(SIGKILL)
            return
        raise TimedOut(f"the end of process {process.pid}", END_TIMEOUT_S)


async def end_strays(bundle: Bundle) -> None:
    """Ends every supervisor and runtime command that a killed driver has left at work on this container."""
    while found := [process for pid in strays(bundle) if (process := identify(pid))]:
        for process in found:
            await _end(process)


async def settle(bundle: Bundle, record: Record) -> None:
    """Waits for the end of what commands a killed driver has left at work on a created container; they are short."""
    for pid in strays(bundle):
        process = identify(pid)
        pidfd = PidFd.open(process) if process and process not in (record.init, record.supervisor) else None
        if pidfd is not None:
            with pidfd, suppress(TimeoutError):
                async with asyncio.timeout(END_TIMEOUT_S):
                    await pidfd.wait()


def strays(bundle: Bundle) -> list[int]:
    """Pids of commands that name both this container and our state directory."""
    name, below = bundle.id.encode(), bytes(bundle.root) + b"/"
    return [pid for pid, argv in command_lines() if name in argv and any(part.startswith(below) for part in argv)]


# run


async def _run(making: Making) -> None:
    if making.container is None:
        raise InternalError("a container is created before it is run")
    if told := await making.container.start(making.log):
        raise StartFailed(making.bundle.id, _sentence(told, making))
    making.bundle.started.touch()


DIRECTORY = Step("directory", _make_directory, _remove_directory)
ROOTFS = Step("rootfs", _mount_rootfs, _unmount_rootfs)
CONFIG = Step("config", _write_config, nothing)
SUPERVISOR = Step("supervisor", _hold, _release)
CONTAINER = Step("container", _create, remove_container)
RUN = Step("run", _run, nothing)
