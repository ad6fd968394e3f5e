"""Containers of a Podman or Docker engine, over its HTTP API.

The engine makes them, supervises them, and keeps the images. What it cannot do is to write to Nomad's FIFOs: a small process per container
does (`engine_follower`), which outlives this one.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from zlayer_driver.backends import Context, engine_end
from zlayer_driver.backends.engine_abilities import EngineAbilities
from zlayer_driver.backends.engine_api import DOCKER, PODMAN, Api, Doc
from zlayer_driver.backends.engine_container import Container, runs
from zlayer_driver.backends.engine_images import EngineImages
from zlayer_driver.backends.engine_output import Logs, Output
from zlayer_driver.backends.engine_spec import STATE_LABEL, TASK_LABEL, create_body
from zlayer_driver.errors import DriverError, EngineError, NotFound
from zlayer_driver.host import signals
from zlayer_driver.model import Exit, Fingerprint, Handle, Health, TaskSpec
from zlayer_driver.waiting import to_its_end

_log = logging.getLogger(__name__)
_ENGINES: Final = {engine.name: engine for engine in (PODMAN, DOCKER)}
_NEVER_RAN: Final = {"created", "configured"}


def make(context: Context) -> EngineBackend:
    """The engine that the operator's config names as primary."""
    return EngineBackend(Api(_ENGINES[context.config.primary], context.config.engine_socket), context.state_dir / context.config.primary)


class EngineBackend(EngineImages, EngineAbilities):
    """``root`` is a directory of its own; it tells this instance's containers, and those of its successors, from all others of the engine."""

    def __init__(self, api: Api, root: Path) -> None:
        super().__init__(api)
        self._root = root.absolute()
        self._state = hashlib.sha256(bytes(self._root)).hexdigest()[:16]
        self._outputs: dict[str, Output] = {}  # of the containers that this process has, by their names

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
            container = await to_its_end(Container.create(self._api, spec.id, name, body))
            await output.follow(self._api.socket, container.ref, 0, logs)
            await to_its_end(container.start())
        except DriverError:
            await self._remove(name)
            raise
        return {"container": container.ref, "stdout": logs.stdout, "stderr": logs.stderr}

    async def recover(self, handle: Handle) -> None:
        await self._taken_back(handle)

    async def wait(self, handle: Handle) -> Exit:
        container, output, _ = await self._taken_back(handle)
        return await engine_end.wait(container, output)

    async def stop(self, handle: Handle, *, timeout_s: float, signal: str) -> None:
        number = signals.number(signal) if signal else 0  # a name that is none is told even for a task that is gone
        with suppress(NotFound):
            container, output, found = await self._taken_back(handle)
            if runs(found["State"]):
                asked = number or signals.number(found["Config"].get("StopSignal") or "SIGTERM")
                await engine_end.stop(container, output, number=asked, timeout_s=timeout_s)

    async def destroy(self, handle: Handle) -> None:
        await self._remove(self._name(handle.task_id))

    async def sweep(self, *, orphans_after_s: float | None = None) -> None:
        filters = f'{{"label":["{STATE_LABEL}={self._state}"]}}'
        try:
            listed = await self._api.call("GET", "/containers/json", query={"all": 1, "filters": filters})
        except EngineError as error:
            _log.warning("what an earlier driver left cannot be looked for: %s", error)
            return
        for entry in listed:
            if entry["State"] in _NEVER_RAN or (orphans_after_s is not None and entry["Created"] < time.time() - orphans_after_s):
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

    async def _remove(self, name: str) -> None:
        output = self._outputs.pop(name, None) or Output(self._root, name)
        await output.end()
        with suppress(NotFound):
            await self._api.call("DELETE", f"/containers/{name}", query={"force": 1, "v": 1}, container=name)
        await output.remove()

    def _name(self, task_id: str) -> str:
        """The container's name in the engine; the id is the engine's to give."""
        return f"zlayer-{self._state[:8]}-{hashlib.sha256(task_id.encode()).hexdigest()[:32]}"

    def _container(self, handle: Handle) -> Container:
        return Container(self._api, handle.task_id, str(handle.data.get("container", "")) or self._name(handle.task_id))

    async def _taken_back(self, handle: Handle) -> tuple[Container, Output, Doc]:
        """The container, which this process has from now on; its output goes on to the logs. Last, the engine's document of it."""
        container, name = self._container(handle), self._name(handle.task_id)
        found = await container.look()
        container = replace(container, ref=found["Id"])
        output = self._outputs.get(name)
        if output is None:
            output = self._outputs[name] = Output.keep(self._root, name)
        if runs(found["State"]) and handle.data:
            logs = Logs(str(handle.data.get("stdout", "/dev/null")), str(handle.data.get("stderr", "/dev/null")))
            await output.follow(self._api.socket, container.ref, int(found["State"]["Pid"]), logs)
        return container, output, found
