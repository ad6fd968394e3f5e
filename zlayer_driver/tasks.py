"""The task table: who is in which state, who waits for it, and what there is to tell.

States and events; what is not in the table is a fault of the caller::

    state      begin     running   failed   exited   recovered   drop
    (none)     STARTING                              RUNNING     (none)
    STARTING             RUNNING   (none)                        (none)
    RUNNING                                 EXITED   RUNNING     (none)
    EXITED                                           EXITED      (none)

A row that is dropped answers its waiters with `NotFound`. Each running row has one watcher, so that any number of waiters cost one wait
of the backend's. Nothing else in the project keeps the state of a task.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from zlayer_driver.errors import DriverError, InvalidSpec, NotFound
from zlayer_driver.model import Exit, Handle, PullProgress, TaskEvent, TaskState, TaskStatus

Wait = Callable[[str], Awaitable[Exit]]
_log = logging.getLogger(__name__)
_PROGRESS_EVERY_S = 15.0
_KEPT_EVENTS = 256  # events that nobody has read yet; older ones go


@dataclass(slots=True)
class _Row:
    name: str
    alloc_id: str
    ended: asyncio.Future[Exit]
    state: TaskState = TaskState.STARTING
    handle: Handle | None = None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    completed_at: datetime | None = None
    watcher: asyncio.Task[None] | None = None


class TaskTable:
    """``wait`` asks a task's owner for its exit; it is called once a task and may take for ever."""

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self._rows: dict[str, _Row] = {}

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._rows

    def begin(self, task_id: str, *, name: str, alloc_id: str = "") -> None:
        """A row for a task about to start; `InvalidSpec` if it has one."""
        if row := self._rows.get(task_id):
            raise InvalidSpec(f"task {task_id!r} is {row.state} already", hint="a new start needs a new id, or destroy the task first")
        self._rows[task_id] = _Row(name, alloc_id, asyncio.get_running_loop().create_future())

    def running(self, task_id: str, handle: Handle) -> None:
        row = self._row(task_id)
        row.handle, row.state = handle, TaskState.RUNNING
        row.watcher = asyncio.create_task(self._watch(task_id, row), name=f"watch {task_id}")

    def recovered(self, handle: Handle, *, name: str, alloc_id: str = "") -> None:
        """A row for a task that an earlier process started; the same again changes nothing."""
        if handle.task_id not in self._rows:
            self.begin(handle.task_id, name=name, alloc_id=alloc_id)
            self.running(handle.task_id, handle)

    def drop(self, task_id: str) -> None:
        """Forgets the task, whatever its state; unknown ids are fine."""
        if (row := self._rows.pop(task_id, None)) is None:
            return
        if row.watcher:
            row.watcher.cancel()
        if not row.ended.done():
            row.ended.set_exception(NotFound(task_id, "it was destroyed"))
        row.ended.exception()  # marks it as looked at: a task that nobody waits for is no fault

    async def exited(self, task_id: str) -> Exit:
        """The task's exit, once it has ended; any number may wait, and a cancelled waiter disturbs nobody."""
        return await asyncio.shield(self._row(task_id).ended)

    def label(self, task_id: str) -> tuple[str, str]:
        """The task's allocation id and name."""
        row = self._row(task_id)
        return row.alloc_id, row.name

    def status(self, task_id: str) -> TaskStatus:
        row = self._row(task_id)
        result = row.ended.result() if row.state is TaskState.EXITED and not row.ended.exception() else None
        attributes = {"target": str(row.handle.target), "backend": row.handle.backend} if row.handle else {}
        return TaskStatus(task_id, row.name, row.state, row.started_at, row.completed_at, result, attributes)

    async def close(self) -> None:
        """Ends the watchers; the tasks themselves go on."""
        watchers = [row.watcher for row in self._rows.values() if row.watcher]
        for task_id in list(self._rows):
            self.drop(task_id)
        await asyncio.gather(*watchers, return_exceptions=True)

    def _row(self, task_id: str) -> _Row:
        try:
            return self._rows[task_id]
        except KeyError:
            raise NotFound(task_id, "this driver runs no such task") from None

    async def _watch(self, task_id: str, row: _Row) -> None:
        try:
            exit_ = await self._wait(task_id)
        except Exception as error:  # noqa: BLE001  # whatever it was, nobody must wait for ever
            if not isinstance(error, DriverError):
                _log.error("the wait for task %s failed", task_id, exc_info=error)
            exit_ = Exit(code=-1, error=str(error))
        row.state, row.completed_at = TaskState.EXITED, datetime.now(UTC)
        if not row.ended.done():
            row.ended.set_result(exit_)


class PullReport:
    """What to tell a user of a pull: that it has begun to fetch something, and from time to time how far it is."""

    def __init__(self, tell: Callable[[str], None], clock: Callable[[], float]) -> None:
        """``clock`` in seconds."""
        self._tell = tell
        self._clock = clock
        self._told_at: float | None = None
        self._layers: dict[str, PullProgress] = {}

    def take(self, step: PullProgress) -> None:
        if step.phase != "download":
            return
        if step.layer:
            self._layers[step.layer] = step
        now, message = self._clock(), f"Downloading image {step.image}"
        if self._told_at is not None:
            if now - self._told_at < _PROGRESS_EVERY_S or not self._layers:
                return
            layers = self._layers.values()
            done, total = sum(layer.done_bytes for layer in layers), sum(layer.total_bytes or 0 for layer in layers)
            message += f": {done / 1e6:.0f} of {total / 1e6:.0f} MB of {len(layers)} layers"
        self._tell(message)
        self._told_at = now


class Events:
    """What there is to tell of tasks. Events wait for a reader; with several readers each gets all that come after it joined."""

    def __init__(self) -> None:
        self._unread: deque[TaskEvent] = deque(maxlen=_KEPT_EVENTS)
        self._readers: set[asyncio.Queue[TaskEvent | None]] = set()

    def emit(self, event: TaskEvent) -> None:
        for queue in self._readers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)
        if not self._readers:
            self._unread.append(event)

    def close(self) -> None:
        """Ends every reader's stream."""
        for queue in self._readers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)

    async def read(self) -> AsyncIterator[TaskEvent]:
        queue: asyncio.Queue[TaskEvent | None] = asyncio.Queue(_KEPT_EVENTS)
        while self._unread:
            queue.put_nowait(self._unread.popleft())
        self._readers.add(queue)
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._readers.discard(queue)
