"""A container of an engine, as the engine knows it: ``/containers``."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from signal import SIGKILL
from typing import Any, Final, Self

from zlayer_driver.backends.engine_api import Api, Doc, Query
from zlayer_driver.errors import CreateFailed, EngineError, InvalidSpec, NotFound, StartFailed
from zlayer_driver.model import Exit

_log = logging.getLogger(__name__)
_RETRY_S: Final = 0.2
_LOOKS: Final = 10
_JUST_ENDED: Final = "no such process"
_BETWEEN: Final = {"stopping", "restarting"}
_LAST_SIGNAL: Final = 64


@dataclass(frozen=True, slots=True)
class Container:
    """``ref`` is the engine's id of it, or its name, which it may have had from another; ``task_id`` is what errors call it."""

    api: Api
    task_id: str
    ref: str

    @classmethod
    async def create(cls, api: Api, task_id: str, name: str, body: Doc) -> Self:
        try:
            made = await api.call("POST", "/containers/create", query={"name": name}, body=body)
        except NotFound as error:
            hint = "have it pulled anew, by force_pull in the task or `zlayer-driver pull --always`"
            raise CreateFailed(task_id, error.reason, hint=hint) from error
        except EngineError as error:
            raise CreateFailed(task_id, error.reason, hint=error.hint, recoverable=error.recoverable) from error
        return cls(api, task_id, str(made["Id"]))

    async def start(self) -> None:
        try:
            await self.api.call("POST", f"/containers/{self.ref}/start")
        except NotFound as error:
            raise StartFailed(self.task_id, error.reason) from error
        except EngineError as error:
            raise StartFailed(self.task_id, error.reason, hint=error.hint, recoverable=error.recoverable) from error

    async def look(self) -> Doc:
        """The engine's document of it. Podman has none for the moment in which the container ends."""
        patience = _LOOKS
        while True:
            try:
                found: Doc = await self.api.call("GET", f"/containers/{self.ref}/json", container=self.task_id)
            except EngineError as error:
                patience -= 1
                if _JUST_ENDED not in error.reason or not patience:
                    raise
                await asyncio.sleep(_RETRY_S)
            else:
                return found

    async def id(self) -> str:
        return str((await self.look())["Id"])

    async def tell(self, verb: str, *, query: Query | None = None, body: Doc | None = None, prefix: str = "") -> Any:
        """`InvalidSpec` in the engine's words where it refuses."""
        path = f"{prefix}/containers/{await self.id()}/{verb}"
        try:
            return await self.api.call("POST", path, query=query, body=body, container=self.task_id)
        except EngineError as error:
            if error.recoverable:
                raise
            raise InvalidSpec(f"{self.api.engine.name} cannot {verb} task {self.task_id!r}: {error.reason}") from error

    async def send(self, number: int) -> None:
        await self.tell("kill", query={"signal": number})

    async def end(self) -> Exit:
        """Returns once it has ended, whatever becomes of the engine meanwhile."""
        while True:
            try:
                told = await self.api.call("POST", f"/containers/{self.ref}/wait", container=self.task_id, wait_s=0)
                state = (await self.look())["State"]
            except EngineError as error:
                _log.warning("the exit of task %s is asked for again: %s", self.task_id, error)
            else:
                if not runs(state) and state["Status"] not in _BETWEEN:
                    return _exit(int(told["StatusCode"]), oom_killed=bool(state.get("OOMKilled")))
            await asyncio.sleep(_RETRY_S)  # it was started again, or the engine is not done with it, or not there


def runs(state: Doc) -> bool:
    """Podman does not call a paused container running."""
    return bool(state["Running"] or state.get("Paused"))


def _exit(code: int, *, oom_killed: bool) -> Exit:
    """As engines tell it: a signal death and an exit with 128+n look the same."""
    if code < 0:
        return Exit(1, error="the engine no longer knows how the container ended")
    signal = code - 128 if 0 < code - 128 <= _LAST_SIGNAL else 0
    return Exit(code, signal, oom_killed=oom_killed and signal == SIGKILL)
