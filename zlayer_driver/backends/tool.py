"""A backend that drives the command line of a tool: what all of them share.

Each has a `Tool`, the program itself, and is a `ToolBackend`, which has the verbs. The backend says what the tool must be told to make a
container (`_make`), to pass a signal on (`_send`) and to remove whatever there may be of one (`_unmake`); that the container outlives the
driver, keeps its logs and tells its end is the keeper's work (`tool_job`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from zlayer_driver.backends import tool_job
from zlayer_driver.backends.supervised.bundle import Bundle, container_id
from zlayer_driver.backends.tool_exec import ToolExec, execute, stream
from zlayer_driver.backends.tool_job import Command, Job
from zlayer_driver.errors import CreateFailed, DriverError, InternalError, NotFound, TimedOut, Unsupported
from zlayer_driver.host import signals
from zlayer_driver.host.commands import Completed
from zlayer_driver.host.processes import capture
from zlayer_driver.model import ExecResult, Exit, Fingerprint, Handle, Health, TaskSpec, TaskState
from zlayer_driver.readings import ExecEvent, ExecInput, ExecOptions, Usage, UsageSample
from zlayer_driver.waiting import to_its_end

_log = logging.getLogger(__name__)
_CALL_TIMEOUT_S = 60.0
_OUTPUT_BYTES = 16 << 20
_SAID_LINES = 3
_LABEL_TAIL = 47
_SAMPLE_INTERVAL_S = 1.0


class Tool:
    """A program of others, found on PATH whenever it is needed; ``hint`` is how to get it."""

    def __init__(self, name: str, *, hint: str) -> None:
        self.name = name
        self.hint = hint

    @property
    def path(self) -> str:
        """`Unsupported` if this node does not have it."""
        if (found := shutil.which(self.name)) is None:
            raise Unsupported(f"{self.name} is not installed", hint=self.hint)
        return found

    def missing(self) -> str:
        """Why it cannot be used here, with the cure; empty if it can."""
        return "" if shutil.which(self.name) else f"{self.name} is not installed: {self.hint}"

    async def run(self, *argv: str, env: Mapping[str, str] | None = None, timeout_s: float = _CALL_TIMEOUT_S) -> Completed:
        """Runs it to its end. ``env`` is added to the driver's; ``timeout_s`` 0 is no limit."""
        merged = {**os.environ, **env} if env else None
        return await capture([self.path, *argv], timeout_s=timeout_s, limit_bytes=_OUTPUT_BYTES, env=merged)

    async def ask(
        self, *argv: str, failed: Callable[[str], DriverError], env: Mapping[str, str] | None = None, timeout_s: float = _CALL_TIMEOUT_S
    ) -> str:
        """What it writes; ``failed`` makes an error of its own words, should it refuse."""
        done = await self.run(*argv, env=env, timeout_s=timeout_s)
        if done.status != 0:
            raise failed(said(done))
        return done.stdout.decode("utf-8", "replace")

    async def ask_json(self, *argv: str, failed: Callable[[str], DriverError]) -> Any:
        text = await self.ask(*argv, failed=failed)
        try:
            return json.loads(text)
        except ValueError as error:
            raise InternalError(f"{self.name} {argv[0]} answered {text[:200]!r}, which is no JSON", hint=self.hint) from error


def said(done: Completed) -> str:
    """Why a program refused: the end of what it wrote, as one line."""
    text = (done.stderr.strip() or done.stdout.strip()).decode("utf-8", "replace")
    lines = [line.strip().removeprefix("Error: ") for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-_SAID_LINES:]) or f"it gave no reason (status {done.status})"


class ToolBackend(ABC):
    """Everything that it keeps itself lies under ``root``; containers outlive it, and any later instance takes them back."""

    def __init__(self, *, name: str, root: Path, tool: Tool) -> None:
        self._name = name
        self._root = root.absolute()
        self._tool = tool
        self._jobs: dict[str, Job] = {}

    @property
    def name(self) -> str:
        return self._name

    @abstractmethod
    async def _version(self) -> str:
        """Of the tool, if it works here; an error of ours if not."""

    @abstractmethod
    async def _make(self, spec: TaskSpec, bundle: Bundle) -> Command:
        """Makes a container that can be started, and says by which command. What a failure leaves, `_unmake` removes."""

    async def _begun(self, spec: TaskSpec, job: Job) -> None:
        """Returns once the container runs, where its command runs before it does; an error of ours if it never will."""
        del spec, job  # most tools' commands are the container

    @abstractmethod
    async def _unmake(self, bundle: Bundle) -> None:
        """Removes whatever the tool may have of a container, whose command has ended. Idempotent; from the bundle alone."""

    async def _send(self, job: Job, number: int) -> None:
        """Passes a signal on to the container's process."""
        job.signal(number)

    async def probe(self) -> Fingerprint:
        try:
            version = await self._version()
        except DriverError as error:
            return Fingerprint(Health.UNDETECTED, str(error))
        return Fingerprint(Health.HEALTHY, f"{self._tool.name} {version}", {"version": version})

    async def start(self, spec: TaskSpec) -> Mapping[str, Any]:
        bundle, job = self._bundle(spec.id), None
        try:
            while job is None:
                async with bundle.locked(create=True):
                    if bundle.is_empty():
                        job = await self._started(spec, bundle)
                    else:  # what is in the way goes, and the lock that we hold with it
                        await self._remove(spec.id, bundle)
        except OSError as error:
            raise CreateFailed(spec.id, f"{error.strerror}: {error.filename}") from error
        return job.data

    async def _started(self, spec: TaskSpec, bundle: Bundle) -> Job:
        try:
            job = self._jobs[spec.id] = await Job.launch(bundle, await self._make(spec, bundle), spec)
            await self._begun(spec, job)
        except BaseException:
            await to_its_end(self._remove(spec.id, bundle))
            raise
        return job

    async def recover(self, handle: Handle) -> None:
        self._job(handle)

    async def wait(self, handle: Handle) -> Exit:
        return await self._job(handle).wait()

    async def stop(self, handle: Handle, *, timeout_s: float, signal: str) -> None:
        number = signals.number(signal) if signal else 0  # a name that is none is told even for a task that is gone
        try:
            job = self._job(handle)
        except NotFound:
            return
        if job.ended:
            return
        with suppress(InternalError, TimedOut):  # a container that cannot be asked is killed
            await self._send(job, number or signals.number(job.doc["stop_signal"]))
        if not await ended_within(job, timeout_s):
            await self._kill(job)

    async def _kill(self, job: Job) -> None:
        """By the tool where that can; its command is ended in any case."""
        await job.kill()

    async def destroy(self, handle: Handle) -> None:
        bundle = self._bundle(handle.task_id)
        async with bundle.locked() as exists:
            if exists:
                await self._remove(handle.task_id, bundle)

    async def sweep(self, *, orphans_after_s: float | None = None) -> None:
        for path in sorted((self._root / "c").glob("*")):
            bundle = Bundle(self._root, path.name)
            orphaned = orphans_after_s is not None and bundle.started_before(time.time() - orphans_after_s)
            if (bundle.complete and not orphaned) or (lock := bundle.try_lock()) is None:
                continue
            try:
                await self._sweep_away(bundle)
            except (DriverError, OSError) as error:  # one that resists must not keep the driver from its tasks
                _log.warning("what is left of container %s cannot be removed yet: %s", bundle.id, error)
            finally:
                os.close(lock)

    async def _sweep_away(self, bundle: Bundle) -> None:
        if (claim := bundle.claim_unkept()) is None:
            return
        try:
            await self._erase(bundle)
        finally:
            os.close(claim)

    async def state(self, handle: Handle) -> TaskState:
        return TaskState.EXITED if self._job(handle).ended else TaskState.RUNNING

    def _bundle(self, task_id: str) -> Bundle:
        return Bundle(self._root, container_id(task_id))

    def _name_of(self, bundle: Bundle) -> str:
        """What the tool calls the container: no other state directory's has it, and it is a DNS label."""
        return f"zlayer-{hashlib.sha256(os.fsencode(self._root)).hexdigest()[:8]}-{bundle.id[-_LABEL_TAIL:]}"

    def _job(self, handle: Handle) -> Job:
        """Of a task that was started or recovered here, or is taken back now; `NotFound` if it is gone."""
        job = self._jobs.get(handle.task_id)
        if job is None:
            bundle = self._bundle(handle.task_id)
            job = Job.load(bundle) if bundle.complete else None
            if job is None:
                raise NotFound(handle.task_id, "this node has no container of it")
        if handle.data and handle.data != job.data:
            if handle.task_id not in self._jobs:
                job.close()
            raise NotFound(handle.task_id, "another container has its place")
        self._jobs[handle.task_id] = job
        return job

    def _running(self, handle: Handle) -> Job:
        job = self._job(handle)
        if job.ended:
            raise NotFound(handle.task_id, "it has ended")
        return job

    async def _remove(self, task_id: str, bundle: Bundle) -> None:
        """The caller holds the bundle's lock."""
        await self._erase(bundle)
        if job := self._jobs.pop(task_id, None):
            job.close()

    async def _erase(self, bundle: Bundle) -> None:
        bundle.destroying.touch()
        await tool_job.end(bundle)
        await self._unmake(bundle)
        await erase(bundle.dir)


class Interactive(ToolBackend):
    """One whose tool passes signals on and runs further commands."""

    @abstractmethod
    def _exec(self, job: Job, argv: Sequence[str], told: ExecOptions, *, tty: bool, stdin: bool) -> ToolExec:
        """The command line that runs ``argv`` in a running container."""

    async def signal(self, handle: Handle, signal: str) -> None:
        number = signals.number(signal or "SIGTERM")
        await self._send(self._running(handle), number)

    async def exec(self, handle: Handle, argv: Sequence[str], *, timeout_s: float, options: ExecOptions | None = None) -> ExecResult:
        command = self._exec(self._running(handle), argv, options or ExecOptions(), tty=False, stdin=False)
        return await execute(command, timeout_s=timeout_s)

    async def stream_exec(
        self, handle: Handle, argv: Sequence[str], *, tty: bool, stdin: AsyncIterator[ExecInput] | None = None
    ) -> AsyncIterator[ExecEvent]:
        command = self._exec(self._running(handle), argv, ExecOptions(), tty=tty, stdin=stdin is not None)
        return stream(command, stdin, tty=tty)


class Metered(ToolBackend):
    """One whose tool measures what a container uses."""

    @abstractmethod
    async def _sample(self, job: Job) -> UsageSample: ...

    async def usage(self, handle: Handle) -> Usage:
        return (await self._sample(self._running(handle))).usage

    async def stream_usage(self, handle: Handle) -> AsyncIterator[UsageSample]:
        return self._samples(self._running(handle))

    async def _samples(self, job: Job) -> AsyncIterator[UsageSample]:
        while not job.ended:
            with suppress(NotFound):  # it ended while the tool looked
                yield await self._sample(job)
            await ended_within(job, _SAMPLE_INTERVAL_S)


async def erase(path: Path) -> None:
    """Removes a tree, by rm(1): a container may have nested directories deeper than any recursion of ours."""
    done = await capture(["rm", "-rf", "--", str(path)])
    if done.status != 0:
        raise InternalError(f"cannot remove {path}: {said(done)}", hint="destroy the task again")


async def ended_within(job: Job, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await job.wait()
    except TimeoutError:
        return False
    return True
