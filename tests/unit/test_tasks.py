"""The task table and the event stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from zlayer_driver.errors import InternalError, InvalidSpec, NotFound
from zlayer_driver.model import Exit, Handle, Target, TaskEvent, TaskState
from zlayer_driver.tasks import Events, TaskTable

HANDLE = Handle("a", Target.PRIMARY, "fake", {})


class Owner:
    """Waits until the test says that a task has ended."""

    def __init__(self) -> None:
        self.ends: dict[str, asyncio.Future[Exit]] = {}
        self.asked: list[str] = []

    async def wait(self, task_id: str) -> Exit:
        self.asked.append(task_id)
        return await self.ends.setdefault(task_id, asyncio.get_running_loop().create_future())


async def _turns(until: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not until():  # noqa: ASYNC110  # single turns of the loop, no time passes
            await asyncio.sleep(0)


@pytest.fixture
def owner() -> Owner:
    return Owner()


@pytest.fixture
def table(owner: Owner) -> TaskTable:
    return TaskTable(owner.wait)


async def _running(table: TaskTable, owner: Owner) -> None:
    table.begin("a", name="web", alloc_id="alloc")
    table.running("a", HANDLE)
    await _turns(lambda: "a" in owner.ends)


async def test_many_waiters_cost_one_wait_and_all_get_the_exit(table: TaskTable, owner: Owner) -> None:
    await _running(table, owner)
    waiters = [asyncio.create_task(table.exited("a")) for _ in range(5)]
    owner.ends["a"].set_result(Exit(7))
    assert await asyncio.gather(*waiters) == [Exit(7)] * 5
    assert await table.exited("a") == Exit(7)
    assert owner.asked == ["a"]
    assert table.status("a").state is TaskState.EXITED
    assert table.status("a").exit == Exit(7)


async def test_a_cancelled_waiter_disturbs_nobody(table: TaskTable, owner: Owner) -> None:
    await _running(table, owner)
    gone, stays = asyncio.create_task(table.exited("a")), asyncio.create_task(table.exited("a"))
    await asyncio.sleep(0)
    gone.cancel()
    owner.ends["a"].set_result(Exit(0))
    assert await stays == Exit(0)
    assert gone.cancelled()


async def test_drop_answers_waiters_and_frees_the_id(table: TaskTable, owner: Owner) -> None:
    await _running(table, owner)
    waiter = asyncio.create_task(table.exited("a"))
    await asyncio.sleep(0)
    table.drop("a")
    with pytest.raises(NotFound, match="destroyed"):
        await waiter
    assert "a" not in table
    table.drop("a")
    table.begin("a", name="web")
    table.drop("a")


async def test_an_id_has_one_row(table: TaskTable, owner: Owner) -> None:
    await _running(table, owner)
    with pytest.raises(InvalidSpec, match="is running already"):
        table.begin("a", name="web")
    table.recovered(HANDLE, name="web")
    assert owner.asked == ["a"]
    await table.close()


async def test_recovery_gives_a_running_row(table: TaskTable, owner: Owner) -> None:
    table.recovered(HANDLE, name="web", alloc_id="alloc")
    await _turns(lambda: "a" in owner.ends)
    assert table.label("a") == ("alloc", "web")
    assert table.status("a").attributes == {"target": "primary", "backend": "fake"}
    owner.ends["a"].set_result(Exit(137, 9, oom_killed=True))
    assert await table.exited("a") == Exit(137, 9, oom_killed=True)


@pytest.mark.parametrize("error", [InternalError("the exit file is gone"), ValueError("the exit file is gone")])
async def test_a_wait_that_fails_is_an_exit_with_its_reason(table: TaskTable, owner: Owner, error: Exception) -> None:
    await _running(table, owner)
    owner.ends["a"].set_exception(error)
    async with asyncio.timeout(5):
        assert await table.exited("a") == Exit(-1, error="the exit file is gone")


async def test_unknown_ids_are_not_found(table: TaskTable) -> None:
    with pytest.raises(NotFound, match="runs no such task"):
        await table.exited("nobody")
    with pytest.raises(NotFound):
        table.status("nobody")


def _event(number: int) -> TaskEvent:
    return TaskEvent("a", "alloc", "web", str(number), datetime.fromtimestamp(number, UTC))


async def test_events_wait_for_a_reader_and_end_with_close() -> None:
    events = Events()
    events.emit(_event(1))
    stream = events.read()
    assert (await anext(stream)).message == "1"
    events.emit(_event(2))
    events.close()
    assert [event.message async for event in stream] == ["2"]


async def test_a_slow_reader_loses_the_oldest_events_only() -> None:
    events = Events()
    stream = events.read()
    events.emit(_event(0))
    first = await anext(stream)
    for number in range(1, 1000):
        events.emit(_event(number))
    events.close()
    rest = [event.message async for event in stream]
    assert first.message == "0"
    assert rest[-1] == "999"
    assert len(rest) == 255
