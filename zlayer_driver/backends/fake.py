"""A backend without containers: for tests, and for trying the driver out. It keeps the whole contract.

What a task does is told by its own labels, so that a job file is enough to see any failure:

==========================  ===================================================================
``fake.run_for``            how long it runs: seconds, or ``forever``; 0 by default
``fake.exit_code``          its exit code
``fake.exit_signal``        the signal that it dies of instead
``fake.oom_killed``         ``true``: the signal came from the kernel's out-of-memory killer
``fake.stdout``             what it writes as soon as it runs; likewise ``fake.stderr``
``fake.ignores``            signals that do not end it, with commas between
``fake.start_error``        its start fails with this text
``fake.start_recoverable``  ``true``: and the same start may succeed later
``fake.start_blocks``       ``true``: its start does not come back until it is cancelled
``fake.signal_error``       signalling it fails with this text
==========================  ===================================================================

The commands of ``exec`` are ``exit CODE``, ``print STDOUT STDERR``, ``tell`` (its options), ``read`` (its input, where that is streamed) and
``block``; any other does not exist. Images of the registry ``fake.invalid`` cannot be pulled.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from zlayer_driver.errors import CreateFailed, InvalidSpec, NotFound, PullFailed, TimedOut
from zlayer_driver.host import signals
from zlayer_driver.image.policy import must_fetch
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
from zlayer_driver.readings import (
    Channel,
    ExecEvent,
    ExecInput,
    ExecOptions,
    GuestOverlay,
    ImageDetails,
    LogLine,
    OverlayKind,
    Pruned,
    Usage,
)

_KILL: Final = 9
_SHELL_NOT_FOUND: Final = 127


@dataclass(slots=True)
class _Container:
    spec: TaskSpec
    incarnation: int
    ended: asyncio.Future[Exit]
    timer: asyncio.TimerHandle | None = None
    log: list[LogLine] = field(default_factory=list)
    resources: Resources = field(default_factory=Resources)
    address: str = ""

    def told(self, key: str) -> str:
        return self.spec.labels.get(f"fake.{key}", "")

    def end(self, how: Exit) -> None:
        if not self.ended.done():
            self.ended.set_result(how)

    def kill(self, number: int) -> None:
        self.end(Exit(128 + number, number))

    def ignores(self, number: int) -> bool:
        return number != _KILL and number in {signals.number(name) for name in self.told("ignores").split(",") if name}


@dataclass(slots=True)
class Machine:
    """What outlives a backend object, as a real machine does."""

    containers: dict[str, _Container] = field(default_factory=dict)
    images: dict[str, ImageRecord] = field(default_factory=dict)
    incarnations: itertools.count[int] = field(default_factory=itertools.count)


class FakeBackend:
    """``machine`` is shared by those who are to see the same containers, such as a backend and its successor after a restart."""

    def __init__(self, machine: Machine | None = None, *, name: str = "fake", overlay: OverlayKind = OverlayKind.HOST_NETNS) -> None:
        self._machine = machine or Machine()
        self._name = name
        self._overlay = overlay

    @property
    def name(self) -> str:
        return self._name

    async def probe(self) -> Fingerprint:
        return Fingerprint(Health.HEALTHY, "a fake: it runs nothing")

    async def start(self, spec: TaskSpec) -> Mapping[str, Any]:
        loop = asyncio.get_running_loop()
        container = _Container(spec, next(self._machine.incarnations), loop.create_future(), resources=spec.resources)
        if container.told("start_blocks"):
            await loop.create_future()
        if text := container.told("start_error"):
            raise CreateFailed(spec.id, text, recoverable=bool(container.told("start_recoverable")))
        end = _planned(container)
        self._remove(spec.id)
        await asyncio.to_thread(_write, container)
        if end is not None:
            container.timer = loop.call_later(end.after_s, container.end, end.how)
        self._machine.containers[spec.id] = container
        return {"incarnation": container.incarnation}

    async def recover(self, handle: Handle) -> None:
        if self._container(handle).incarnation != handle.data.get("incarnation"):
            raise NotFound(handle.task_id, "another container has its place")

    async def wait(self, handle: Handle) -> Exit:
        return await asyncio.shield(self._container(handle).ended)

    async def stop(self, handle: Handle, *, timeout_s: float, signal: str) -> None:
        number = signals.number(signal or "SIGTERM")
        if (container := self._machine.containers.get(handle.task_id)) is None:
            return
        if not container.ignores(number):
            container.kill(number)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(container.ended)
        except TimeoutError:
            container.kill(_KILL)

    async def destroy(self, handle: Handle) -> None:
        self._remove(handle.task_id)

    async def signal(self, handle: Handle, signal: str) -> None:
        number, container = signals.number(signal or "SIGTERM"), self._container(handle)
        if text := container.told("signal_error"):
            raise InvalidSpec(text)
        if not container.ignores(number):
            container.kill(number)

    async def exec(self, handle: Handle, argv: Sequence[str], *, timeout_s: float, options: ExecOptions | None = None) -> ExecResult:
        self._running(handle)
        match list(argv):
            case ["tell"] if options:
                return ExecResult(Exit(0), f"{options.env.get('PROBE', '')}\n{options.work_dir}\n{options.user.split(':')[0]}\n".encode())
            case ["exit", code]:
                return ExecResult(Exit(int(code)))
            case ["print", out, err]:
                return ExecResult(Exit(0), out.encode(), err.encode())
            case ["block"]:
                return await _blocked(timeout_s)
        return ExecResult(Exit(_SHELL_NOT_FOUND), stderr=b"no such command\n")

    async def stream_exec(
        self, handle: Handle, argv: Sequence[str], *, tty: bool, stdin: AsyncIterator[ExecInput] | None = None
    ) -> AsyncIterator[ExecEvent]:
        del tty
        self._running(handle)
        return self._streamed(handle, argv, stdin)

    async def _streamed(self, handle: Handle, argv: Sequence[str], stdin: AsyncIterator[ExecInput] | None) -> AsyncIterator[ExecEvent]:
        if list(argv) == ["read"] and stdin:
            typed = b"".join([item async for item in stdin if isinstance(item, bytes)])
            argv = ["print", f"got {typed.decode()}", ""]
        result = await self.exec(handle, argv, timeout_s=0)
        for channel, data in ((Channel.STDOUT, result.stdout), (Channel.STDERR, result.stderr)):
            if data:
                yield ExecEvent(channel, data)
        yield ExecEvent(exit_code=result.exit.code)

    async def pause(self, handle: Handle) -> None:
        self._running(handle)

    async def resume(self, handle: Handle) -> None:
        self._running(handle)

    async def update(self, handle: Handle, resources: Resources) -> Sequence[str]:
        self._running(handle).resources = resources
        return ()

    async def state(self, handle: Handle) -> TaskState:
        return TaskState.EXITED if self._container(handle).ended.done() else TaskState.RUNNING

    async def logs(self, handle: Handle, tail: int | None = None) -> Sequence[LogLine]:
        log = self._container(handle).log
        return log if tail is None else log[max(0, len(log) - tail) :]

    async def usage(self, handle: Handle) -> Usage:
        return Usage(0, 0, self._running(handle).resources.memory_bytes)

    def overlay_kind(self) -> OverlayKind:
        return self._overlay

    async def attach_overlay(self, handle: Handle, address: str) -> None:
        self._running(handle).address = address

    async def detach_overlay(self, handle: Handle) -> None:
        self._container(handle).address = ""

    async def push_overlay(self, handle: Handle, overlay: GuestOverlay) -> None:
        self._running(handle).address = overlay.address

    async def address(self, handle: Handle) -> str | None:
        return self._container(handle).address or None

    async def pull(
        self,
        image: str,
        *,
        policy: PullPolicy,
        auth: Auth | None,
        report: Report | None = None,
        source: PullSource = PullSource.LOCAL_FIRST,
    ) -> None:
        del auth
        if not await must_fetch(image, policy, source, self._is_here, report):
            return
        if image.startswith("fake.invalid/"):
            raise PullFailed(image, "the registry does not have it")
        self._machine.images.setdefault(image, ImageRecord(image))

    async def _is_here(self, image: str) -> bool:
        return image in self._machine.images

    async def list_images(self) -> Sequence[ImageRecord]:
        return list(self._machine.images.values())

    async def remove_image(self, image: str, *, force: bool) -> None:
        self._image(image)
        if not force and image in self._images_in_use():
            raise InvalidSpec(f"image {image!r} is in use", hint="destroy its containers, or force it")
        del self._machine.images[image]

    async def tag_image(self, source: str, target: str) -> None:
        self._machine.images[target] = dataclasses.replace(self._image(source), reference=target)

    async def inspect_image(self, image: str) -> ImageDetails:
        return ImageDetails(self._image(image).reference, "linux")

    async def prune_images(self) -> Pruned:
        unused = tuple(sorted(self._machine.images.keys() - self._images_in_use()))
        for image in unused:
            del self._machine.images[image]
        return Pruned(unused)

    def _container(self, handle: Handle) -> _Container:
        try:
            return self._machine.containers[handle.task_id]
        except KeyError:
            raise NotFound(handle.task_id, "the fake machine has no such container") from None

    def _running(self, handle: Handle) -> _Container:
        container = self._container(handle)
        if container.ended.done():
            raise NotFound(handle.task_id, "it has ended")
        return container

    def _remove(self, task_id: str) -> None:
        if container := self._machine.containers.pop(task_id, None):
            if container.timer:
                container.timer.cancel()
            container.kill(_KILL)

    def _image(self, image: str) -> ImageRecord:
        try:
            return self._machine.images[image]
        except KeyError:
            raise NotFound(image, "the fake machine has no such image") from None

    def _images_in_use(self) -> set[str]:
        return {container.spec.image for container in self._machine.containers.values()}


@dataclass(frozen=True, slots=True)
class _End:
    after_s: float
    how: Exit


def _planned(container: _Container) -> _End | None:
    """When and how the task ends by itself; ``None``: it does not."""
    if container.told("run_for") == "forever":
        return None
    try:
        after_s, code = float(container.told("run_for") or 0), int(container.told("exit_code") or 0)
    except ValueError as error:
        raise InvalidSpec(f"a label of the fake backend does not fit: {error}") from None
    if name := container.told("exit_signal"):
        number = signals.number(name)
        return _End(after_s, Exit(128 + number, number, oom_killed=bool(container.told("oom_killed"))))
    return _End(after_s, Exit(code))


def _write(container: _Container) -> None:
    """May block, as a FIFO without a reader does."""
    for channel, path in ((Channel.STDOUT, container.spec.stdout_path), (Channel.STDERR, container.spec.stderr_path)):
        if text := container.told(channel):
            container.log += (LogLine(channel, line, datetime.now(UTC)) for line in text.splitlines())
            with Path(path).open("ab") as log:
                log.write(text.encode())


async def _blocked(timeout_s: float) -> ExecResult:
    try:
        async with asyncio.timeout(timeout_s or None):
            await asyncio.get_running_loop().create_future()
    except TimeoutError:
        raise TimedOut("the command", timeout_s) from None
    raise AssertionError  # nobody completes the future
