"""Containers of a Podman or Docker engine, over its HTTP API.

The engine makes them, supervises them, and keeps the images. What it cannot do is to write to Nomad's FIFOs: a small process per container
does (`engine_follower`), which outlives this one.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any, Final

from zlayer_driver.backends import Context
from zlayer_driver.backends.engine_api import DOCKER, LIBPOD, PODMAN, Api, Doc, Query
from zlayer_driver.backends.engine_exec import Exec
from zlayer_driver.backends.engine_images import EngineImages
from zlayer_driver.backends.engine_output import Logs, Output
from zlayer_driver.backends.engine_spec import STATE_LABEL, TASK_LABEL, create_body, limits, spec_limits
from zlayer_driver.backends.engine_streams import log_chunks, log_lines, sample, samples
from zlayer_driver.errors import CreateFailed, DriverError, EngineError, InvalidSpec, NotFound, StartFailed, TimedOut
from zlayer_driver.host import signals
from zlayer_driver.model import ExecResult, Exit, Fingerprint, Handle, Health, Resources, TaskSpec, TaskState
from zlayer_driver.readings import ContainerDetails, ExecEvent, ExecInput, ExecOptions, LogChunk, LogLine, LogOptions, Usage, UsageSample

_log = logging.getLogger(__name__)
_ENGINES: Final = {engine.name: engine for engine in (PODMAN, DOCKER)}
_DRAIN_S: Final = 2.0
_KILL_S: Final = 30.0
_RETRY_S: Final = 0.2
_LOOKS: Final = 10
_JUST_ENDED: Final = "no such process"
_BETWEEN: Final = {"stopping", "restarting"}
_LAST_SIGNAL: Final = 64


def make(context: Context) -> EngineBackend:
    """The engine that the operator's config names as primary."""
    return EngineBackend(Api(_ENGINES[context.config.primary], context.config.engine_socket), context.state_dir / context.config.primary)


class EngineBackend(EngineImages):
    """``root`` is a directory of its own; it tells this instance's containers, and those of its successors, from all others of the engine."""

    def __init__(self, api: Api, root: Path) -> None:
        super().__init__(api)
        self._root = root.absolute()
        self._state = hashlib.sha256(bytes(self._root)).hexdigest()[:16]
        self._outputs: dict[str, Output] = {}

    @property
    def name(self) -> str:
        return self._api.engine.name

    async def probe(self) -> Fingerprint:
        try:
            found = await self._api.call("GET", "/version", wait_s=10)
        except DriverError as error:
            return Fingerprint(Health.UNDETECTED, str(error))
        version, api = str(found.get("Version", "")), str(found.get("ApiVersion", ""))
        return Fingerprint(Health.HEALTHY, f"{self.name} {version}", {"version": version, "api": api, "os": str(found.get("Os", ""))})

    async def start(self, spec: TaskSpec) -> Mapping[str, Any]:
        name = self._name(spec.id)
        body = create_body(spec, self._api.engine, {TASK_LABEL: spec.id, STATE_LABEL: self._state}, self._api.pid())
        await self._remove(name)
        self._outputs[name] = output = Output.keep(self._root, name)
        logs = Logs(spec.stdout_path, spec.stderr_path)
        try:
            container = await _to_its_end(self._create(name, body))
            await output.follow(self._api.socket, container, 0, logs)
            await _to_its_end(self._start(name, container))
        except DriverError:
            await self._remove(name)
            raise
        return {"container": container, "stdout": logs.stdout, "stderr": logs.stderr}

    async def _create(self, name: str, body: Doc) -> str:
        try:
            made = await self._api.call("POST", "/containers/create", query={"name": name}, body=body)
        except NotFound as error:
            raise CreateFailed(name, error.reason, hint="pull the image again") from error
        except EngineError as error:
            raise CreateFailed(name, error.reason, hint=error.hint, recoverable=error.recoverable) from error
        return str(made["Id"])

    async def _start(self, name: str, container: str) -> None:
        try:
            await self._api.call("POST", f"/containers/{container}/start")
        except NotFound as error:
            raise StartFailed(name, error.reason) from error
        except EngineError as error:
            raise StartFailed(name, error.reason, hint=error.hint, recoverable=error.recoverable) from error

    async def recover(self, handle: Handle) -> None:
        await self._taken_back(handle)

    async def _taken_back(self, handle: Handle) -> Doc:
        """The engine's document of the container, which this process has from now on; its output goes on to the logs."""
        found = await self._look(handle)
        name = self._name(handle.task_id)
        if name not in self._outputs:
            self._outputs[name] = Output.keep(self._root, name)
        if _runs(found["State"]) and handle.data:
            logs = Logs(str(handle.data.get("stdout", "/dev/null")), str(handle.data.get("stderr", "/dev/null")))
            await self._outputs[name].follow(self._api.socket, found["Id"], int(found["State"]["Pid"]), logs)
        return found

    async def wait(self, handle: Handle) -> Exit:
        container = (await self._taken_back(handle))["Id"]
        while True:
            try:
                told = await self._api.call("POST", f"/containers/{container}/wait", container=handle.task_id, wait_s=0)
                state = (await self._look(handle))["State"]
            except EngineError as error:
                _log.warning("the exit of task %s is asked for again: %s", handle.task_id, error)
                await asyncio.sleep(_RETRY_S)
                continue
            if not _runs(state) and state["Status"] not in _BETWEEN:
                break
            await asyncio.sleep(_RETRY_S)  # it was started again, or the engine is not done with it
        await self._outputs[self._name(handle.task_id)].drained(_DRAIN_S)
        return _exit(int(told["StatusCode"]), oom_killed=bool(state.get("OOMKilled")))

    async def stop(self, handle: Handle, *, timeout_s: float, signal: str) -> None:
        number = signals.number(signal) if signal else 0
        try:
            found = await self._look(handle)
            if not _runs(found["State"]):
                return
            asked = number or signals.number(found["Config"].get("StopSignal") or "SIGTERM")
            with suppress(TimeoutError):
                await self._send(handle, asked)
                async with asyncio.timeout(timeout_s):
                    await self.wait(handle)
                return
            await self._kill(handle)
        except NotFound:
            return

    async def _kill(self, handle: Handle) -> None:
        """A log that nobody reads must not keep the engine from seeing the end, for which Podman's answer waits: where it might, the follower goes."""
        name = self._name(handle.task_id)
        output = self._outputs.get(name) or Output(self._root, name)
        sending = asyncio.ensure_future(self._send(handle, SIGKILL))
        try:
            await asyncio.wait({sending}, timeout=_DRAIN_S)
            if not sending.done():
                await output.end()
            await sending
        finally:
            sending.cancel()
        for patience_s in (_DRAIN_S, _KILL_S):
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self.wait(handle)
                return
            await output.end()
        raise TimedOut(f"the end of task {handle.task_id!r} after SIGKILL", _KILL_S)

    async def destroy(self, handle: Handle) -> None:
        await self._remove(self._name(handle.task_id))

    async def _remove(self, name: str) -> None:
        output = self._outputs.pop(name, None) or Output(self._root, name)
        await output.end()
        with suppress(NotFound):
            await self._api.call("DELETE", f"/containers/{name}", query={"force": 1, "v": 1}, container=name)
        await output.remove()

    async def sweep(self, *, orphans_after_s: float | None = None) -> None:
        filters = f'{{"label":["{STATE_LABEL}={self._state}"]}}'
        try:
            listed = await self._api.call("GET", "/containers/json", query={"all": 1, "filters": filters})
        except EngineError as error:
            _log.warning("what an earlier driver left cannot be looked for: %s", error)
            return
        for entry in listed:
            never_ran = entry["State"] in {"created", "configured"}
            if never_ran or (orphans_after_s is not None and entry["Created"] < time.time() - orphans_after_s):
                await self._remove_unkept(str(entry["Names"][0]).removeprefix("/"))

    async def _remove_unkept(self, name: str) -> None:
        if (output := Output.claim_unkept(self._root, name)) is None:
            return
        self._outputs[name] = output
        try:
            await self._remove(name)
            _log.warning("container %s was removed: nobody had asked for it", name)
        except DriverError as error:
            _log.warning("orphaned container %s cannot be removed yet: %s", name, error)

    async def signal(self, handle: Handle, signal: str) -> None:
        await self._send(handle, signals.number(signal or "SIGTERM"))

    async def exec(self, handle: Handle, argv: Sequence[str], *, timeout_s: float, options: ExecOptions | None = None) -> ExecResult:
        command = await Exec.create(self._api, await self._id(handle), argv, options or ExecOptions(), stdin=False, tty=False)
        return await command.run(timeout_s)

    async def stream_exec(
        self, handle: Handle, argv: Sequence[str], *, tty: bool, stdin: AsyncIterator[ExecInput] | None = None
    ) -> AsyncIterator[ExecEvent]:
        command = await Exec.create(self._api, await self._id(handle), argv, ExecOptions(), stdin=stdin is not None, tty=tty)
        return command.stream(stdin)

    async def pause(self, handle: Handle) -> None:
        await self._told(handle, "pause")

    async def resume(self, handle: Handle) -> None:
        await self._told(handle, "unpause")

    async def update(self, handle: Handle, resources: Resources) -> Sequence[str]:
        if self._api.engine.is_podman:
            await self._told(handle, "update", body=spec_limits(resources), prefix=LIBPOD)
            return ()
        told = await self._told(handle, "update", body=limits(resources))
        return [str(warning) for warning in told.get("Warnings") or ()]

    async def state(self, handle: Handle) -> TaskState:
        return TaskState.RUNNING if _runs((await self._look(handle))["State"]) else TaskState.EXITED

    async def pid(self, handle: Handle) -> int | None:
        return int((await self._look(handle))["State"]["Pid"]) or None

    async def inspect(self, handle: Handle) -> ContainerDetails:
        found = await self._look(handle)
        ended = not _runs(found["State"])
        return ContainerDetails(exit_code=int(found["State"]["ExitCode"]) if ended else None, raw=found)

    async def logs(self, handle: Handle, tail: int | None = None) -> Sequence[LogLine]:
        return await log_lines(self._api, await self._id(handle), tail)

    async def stream_logs(self, handle: Handle, options: LogOptions) -> AsyncIterator[LogChunk]:
        return log_chunks(self._api, await self._id(handle), options)

    async def usage(self, handle: Handle) -> Usage:
        now = await sample(self._api, await self._id(handle))
        return Usage(now.cpu_total_ns // 1000, now.memory_bytes, now.memory_limit_bytes)

    async def stream_usage(self, handle: Handle) -> AsyncIterator[UsageSample]:
        return samples(self._api, await self._id(handle))

    def _name(self, task_id: str) -> str:
        """The container's name in the engine; the id is the engine's to give."""
        return f"zlayer-{self._state[:8]}-{hashlib.sha256(task_id.encode()).hexdigest()[:32]}"

    async def _look(self, handle: Handle) -> Doc:
        """The engine's document of the very container that ``handle`` names. Podman has none for the moment in which the container ends."""
        name = str(handle.data.get("container", "")) or self._name(handle.task_id)
        patience = _LOOKS
        while True:
            try:
                found: Doc = await self._api.call("GET", f"/containers/{name}/json", container=handle.task_id)
            except EngineError as error:
                patience -= 1
                if _JUST_ENDED not in error.reason or not patience:
                    raise
                await asyncio.sleep(_RETRY_S)
            else:
                return found

    async def _id(self, handle: Handle) -> str:
        return str((await self._look(handle))["Id"])

    async def _send(self, handle: Handle, number: int) -> None:
        await self._told(handle, "kill", query={"signal": number})

    async def _told(self, handle: Handle, verb: str, *, query: Query | None = None, body: Doc | None = None, prefix: str = "") -> Any:
        path = f"{prefix}/containers/{await self._id(handle)}/{verb}"
        try:
            return await self._api.call("POST", path, query=query, body=body, container=handle.task_id)
        except EngineError as error:
            if error.recoverable:
                raise
            raise InvalidSpec(f"{self.name} cannot {verb} task {handle.task_id!r}: {error.reason}") from error


def _runs(state: Doc) -> bool:
    """Podman does not call a paused container running."""
    return bool(state["Running"] or state.get("Paused"))


def _exit(code: int, *, oom_killed: bool) -> Exit:
    """As engines tell it: a signal death and an exit with 128+n look the same."""
    if code < 0:
        return Exit(1, error="the engine no longer knows how the container ended")
    signal = code - 128 if 0 < code - 128 <= _LAST_SIGNAL else 0
    return Exit(code, signal, oom_killed=oom_killed and signal == SIGKILL)


async def _to_its_end(work: Awaitable[Any]) -> Any:
    """What ``work`` gives. It goes on when the caller is cancelled, so that what it makes can be found and removed then."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
