"""Cores that nobody has reserved: which they are changes with every task that reserves some, of whatever driver.

Nomad keeps them in a control group, which a task without cores of its own is told of. A container lies in another group, so it is told
each change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from zlayer_driver.errors import DriverError
from zlayer_driver.host import cgroups
from zlayer_driver.model import Resources

_EVERY_S = 5.0
_log = logging.getLogger(__name__)

Update = Callable[[str, Resources], Awaitable[object]]


class SharedCores:
    """Of the tasks of one driver; ``update`` brings a task's container in line with its resources."""

    def __init__(self, update: Update) -> None:
        self._update = update
        self._tasks: dict[str, tuple[str, str]] = {}  # group, and the CPUs that the container was last given of it
        self._watching: asyncio.Task[None] | None = None

    def add(self, task_id: str, resources: Resources, cpus: str = "") -> None:
        """``cpus`` are those that the container has; of one that an earlier process made, nobody knows."""
        if resources.cpuset_group and not resources.cpuset_cpus:
            self._tasks[task_id] = resources.cpuset_group, cpus
            if self._watching is None:
                self._watching = asyncio.create_task(self._watch())

    def drop(self, task_id: str) -> None:
        self._tasks.pop(task_id, None)

    async def check(self) -> None:
        """Tells each container whose group has other CPUs by now. What cannot be told now is tried again with the next change."""
        for task_id, (group, had) in list(self._tasks.items()):
            if not (cpus := cgroups.cpus(group)) or cpus == had or task_id not in self._tasks:
                continue
            self._tasks[task_id] = group, cpus
            try:
                await self._update(task_id, Resources(cpuset_cpus=cpus))
            except DriverError as error:  # it may have ended meanwhile
                _log.debug("task %s keeps its CPUs: %s", task_id, error)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.check()

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
