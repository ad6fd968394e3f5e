"""What the driver tells of tasks and of its node, beside the answers to calls."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from zlayer_driver.backends.fake import FakeBackend
from zlayer_driver.composite import Composite
from zlayer_driver.config import PluginConfig
from zlayer_driver.driver import Driver
from zlayer_driver.errors import DriverError
from zlayer_driver.model import OS, Fingerprint, Health, ImageFacts, PullProgress, Target, TaskRequest
from zlayer_driver.tasks import PullReport


class FakeNode:
    """A fake backend, and fingerprints as the test wants them."""

    def __init__(self) -> None:
        self.composite = Composite({Target.PRIMARY: FakeBackend()}, native_os=OS.LINUX, facts=lambda _image: ImageFacts(os=OS.LINUX))
        self.attributes: list[dict[str, str | int | bool]] = []

    async def pin_images(self) -> None:
        """Of no matter here."""

    async def fingerprint(self) -> Fingerprint:
        return Fingerprint(Health.HEALTHY, "", self.attributes.pop(0))


@pytest.fixture
async def driver(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Driver]:
    driver, node = Driver(), FakeNode()
    monkeypatch.setattr(Driver, "node", property(lambda _: node))
    yield driver
    await driver.shutdown()


async def test_a_task_that_ran_out_of_memory_is_told_of(driver: Driver) -> None:
    config = {"image": "fake:latest", "command": "exit", "labels": {"fake.exit_signal": "9", "fake.oom_killed": "true"}}
    await driver.start_task(TaskRequest(id="a/web/1", name="web", alloc_id="a", config=config))
    assert (await driver.wait_task("a/web/1")).oom_killed
    events = driver.events()
    told = await anext(event async for event in events if event.annotations.get("oom_killed"))
    assert (told.alloc_id, told.task_name, told.message) == ("a", "web", "Out of memory: the kernel killed it at its memory limit")


async def test_a_start_that_fails_hangs_up_on_the_log_collector(driver: Driver, tmp_path: Path) -> None:
    """Which would wait for a writer for seconds else."""
    os.mkfifo(tmp_path / "out")
    reader = asyncio.create_task(asyncio.to_thread((tmp_path / "out").read_bytes))
    bad = TaskRequest(
        id="a/web/1",
        name="web",
        config={"image": "x", "nonsense": 1},
        stdout_path=str(tmp_path / "out"),
        stderr_path=str(tmp_path / "none"),
    )
    async with asyncio.timeout(30):
        while not reader.done():
            with pytest.raises(DriverError, match="nonsense"):
                await driver.start_task(bad)
            await asyncio.sleep(0)
    assert await reader == b""


async def test_an_attribute_that_is_gone_is_told_as_empty(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nomad keeps one that is no longer named."""
    monkeypatch.setattr("zlayer_driver.driver._PROBE_EVERY_S", 0.001)
    driver.config = PluginConfig(orphan_grace=0)
    driver.node.attributes = [{"a": 1, "b": True}, {"a": 1}, {"a": 1}, {"a": 2, "b": True}]  # type: ignore[attr-defined]  # the fake's
    told = driver.fingerprints()
    assert [(await anext(told)).attributes for _ in range(3)] == [{"a": 1, "b": True}, {"a": 1, "b": ""}, {"a": 2, "b": True}]


async def test_a_pull_is_told_of_even_if_all_its_layers_are_here(driver: Driver) -> None:
    for number, force in enumerate((False, False, True)):
        config = {"image": "fake:latest", "command": "exit", "force_pull": force}
        await driver.start_task(TaskRequest(id=f"a/web/{number}", name="web", alloc_id="a", config=config))
    events = driver.events()
    told = [await anext(events) for _ in range(2)]
    assert [(event.task_id, event.message) for event in told] == [
        (task_id, "Downloading image docker.io/library/fake:latest") for task_id in ("a/web/0", "a/web/2")
    ]


def test_a_long_pull_is_told_from_time_to_time() -> None:
    told: list[str] = []
    now = [0.0]
    report = PullReport(told.append, lambda: now[0])
    for step in (PullProgress("x", "resolve"), PullProgress("x", "download")):
        report.take(step)
    for at, layer, done in ((1, "a", 1_000_000), (10, "a", 2_000_000), (17, "b", 3_000_000), (18, "b", 4_000_000), (40, "b", 9_000_000)):
        now[0] = at
        report.take(PullProgress("x", "download", layer, done, 10_000_000))
    assert told == [
        "Downloading image x",
        "Downloading image x: 5 of 20 MB of 2 layers",
        "Downloading image x: 11 of 20 MB of 2 layers",
    ]
