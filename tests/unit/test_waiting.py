"""Work goes on to its end, however often who waits for it is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from zlayer_driver.waiting import in_thread, to_its_end


async def _cancelled_twice(waiting: asyncio.Task[object], let_go: asyncio.Event) -> None:
    for _ in range(2):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    let_go.set()
    await asyncio.wait([waiting])
    assert waiting.cancelled()


async def test_the_result_is_given() -> None:
    assert await to_its_end(asyncio.sleep(0, "done")) == "done"
    assert await in_thread("a".join, "bc") == "bac"


async def test_cancellation_follows_the_end() -> None:
    let_go, done = asyncio.Event(), []

    async def work() -> None:
        await let_go.wait()
        done.append(True)

    await _cancelled_twice(asyncio.ensure_future(to_its_end(work())), let_go)
    assert done


async def test_a_failure_that_nobody_waits_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    let_go = asyncio.Event()

    async def work() -> None:
        await let_go.wait()
        raise ValueError("the disk is full")

    await _cancelled_twice(asyncio.ensure_future(to_its_end(work())), let_go)
    assert "the disk is full" in caplog.text
