"""Making a container is a list of named steps; removing one is the same list backwards.

Each undo works from disk alone, whether its step was done, half done or never begun, so that any process can remove what another,
killed at any moment, has left.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.backends.supervised.conmon import Held
from zlayer_driver.backends.supervised.container import Container
from zlayer_driver.backends.supervised.runtime import Runtime
from zlayer_driver.errors import InternalError
from zlayer_driver.image.values import Image
from zlayer_driver.model import TaskSpec
from zlayer_driver.waiting import to_its_end


@dataclass(slots=True)
class Making:
    """One container in the making: ``held`` until its processes are there, ``container`` from then on, before it runs, for it may be over in no time."""

    bundle: Bundle
    task: TaskSpec
    image: Image
    runtime: Runtime
    held: Held | None = None
    container: Container | None = None

    @property
    def log(self) -> Path:
        return self.bundle.dir / "runtime.log"

    @property
    def digest(self) -> str:
        """Of the spec; the same for the same spec in any process. Credentials are no part of what a container is."""
        fields = {field.name: getattr(self.task, field.name) for field in dataclasses.fields(self.task) if field.name != "auth"}
        return hashlib.sha256(json.dumps(fields, default=_plain, sort_keys=True).encode()).hexdigest()

    def let_go(self) -> None:
        """Of the supervisor, which has its container now, or is to have none."""
        if self.held is not None:
            self.held.close()
            self.held = None

    def close(self) -> None:
        self.let_go()
        if self.container is not None:
            self.container.close()


@dataclass(frozen=True, slots=True)
class Step:
    """``undo`` must do for a step that failed half-way, too."""

    name: str
    do: Callable[[Making], Awaitable[None]]
    undo: Callable[[Bundle], Coroutine[Any, Any, None]]


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
            undo.push_async_callback(_undo, step, making.bundle)
            await step.do(making)
        if making.container is None:
            raise InternalError("the steps of a start made no container")
        undo.pop_all()
    return making.container


async def remove(bundle: Bundle, steps: tuple[Step, ...]) -> None:
    """Undoes every step. The caller holds the bundle's lock. Goes on where an earlier removal was interrupted."""
    for step in reversed(steps):
        await _undo(step, bundle)


async def _undo(step: Step, bundle: Bundle) -> None:
    await to_its_end(step.undo(bundle))
