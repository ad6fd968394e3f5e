"""A macOS node, whole but for its tools: the real driver, composite and backends over doubles of sandbox-exec, tart, container and krunvm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.contract.tool_subject import home
from tests.doubles import registry
from tests.doubles.images import archive, directory, image, member
from tests.doubles.tools import calls
from zlayer_driver.config import PluginConfig
from zlayer_driver.driver import Driver
from zlayer_driver.errors import NotFound
from zlayer_driver.model import OS, Exit, Handle, Target, TaskEvent, TaskRequest
from zlayer_driver.readings import OverlayKind

__all__ = ["home"]

pytestmark = pytest.mark.needs("linux", "root", "docker-registry")
DEADLINE_S = 30.0
RUNS = ["-c", "echo $HELLO; exec sleep 1000"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[OS, str]]:
    """One image for each system, in a real registry."""
    layer = archive(directory("bin"), member("bin/hello", b"#!/bin/sh\n", mode=0o755))
    with registry.running(tmp_path_factory.mktemp("registry")) as server:
        yield {system: server.push(image([layer], os=system), str(system), "v1") for system in (OS.DARWIN, OS.LINUX)}


@dataclass
class Mac:
    """A macOS node of one directory, and what its driver said of fallbacks."""

    state: Path
    home: Path
    said: list[TaskEvent] = field(default_factory=list)

    @asynccontextmanager
    async def driver(self) -> AsyncIterator[Driver]:
        driver = Driver(native_os=OS.DARWIN)
        await driver.set_config(PluginConfig(state_dir=str(self.state)), validate_only=False)
        await driver.init()
        listening = asyncio.create_task(self._listen(driver))
        yield driver
        await driver.shutdown()
        await listening

    async def _listen(self, driver: Driver) -> None:
        self.said += [event async for event in driver.events() if "failed" in event.annotations]

    def tools(self) -> list[str]:
        """The tools called since the last look, each once, in order."""
        told = [call[0] for call in calls(self.home)]
        (self.home / "calls").write_text("")
        return list(dict.fromkeys(told))


@pytest.fixture
def mac(tmp_path: Path, home: Path, images: Mapping[OS, str]) -> Mac:
    """Both guests' own stores can pull what the registry has."""
    for reference in images.values():
        (home / "images" / reference.replace("/", "_")).write_text(json.dumps({"cmd": ["/bin/sh"]}))
    return Mac(tmp_path / "state", home)


def request(task_id: str, reference: str, **config: Any) -> TaskRequest:
    return TaskRequest(
        id=task_id, name=task_id, config={"image": reference, "command": "/bin/sh", "args": RUNS, **config}, env={"HELLO": "hello"}
    )


async def test_a_macos_image_goes_to_the_sandbox(mac: Mac, images: Mapping[OS, str]) -> None:
    async with mac.driver() as driver:
        handle = await driver.start_task(request("task", images[OS.DARWIN]))
        assert (handle.target, handle.backend) == (Target.PRIMARY, "seatbelt")
        assert driver.node.composite.overlay_kind("task") is OverlayKind.HOST_PROXY
        await driver.destroy_task("task")
    assert not mac.said


async def test_where_the_sandbox_fails_vz_takes_it_for_life(mac: Mac, images: Mapping[OS, str]) -> None:
    (mac.home / "no-sandbox").write_text("true")
    async with mac.driver() as driver:
        handle = await driver.start_task(request("task", images[OS.DARWIN]))
        assert (handle.target, handle.backend) == (Target.VZ, "vz")
        assert driver.node.composite.overlay_kind("task") is OverlayKind.GUEST_MANAGED
        assert not list(mac.state.glob("seatbelt/c/*"))
        mac.tools()
        assert (await driver.exec_task("task", ["/bin/sh", "-c", "echo $HELLO"], timeout_s=DEADLINE_S)).stdout == b"hello\n"
        await driver.signal_task("task", "SIGCONT")
    async with mac.driver() as driver:  # its successor asks nobody else
        await driver.recover_task(Handle.loads(handle.dumps()), request("task", images[OS.DARWIN]))
        await driver.stop_task("task", timeout_s=DEADLINE_S, signal="SIGTERM")
        assert await driver.wait_task("task") == Exit(143, 15)
        await driver.destroy_task("task")
    assert mac.tools() == ["tart"]
    assert [event.annotations for event in mac.said] == [{"failed": "primary", "target": "vz"}]
    assert "sandbox_apply: Operation not permitted" in mac.said[0].message
    assert not list(mac.home.glob("tart-*"))


async def test_a_linux_image_goes_to_the_linux_guest(mac: Mac, images: Mapping[OS, str]) -> None:
    async with mac.driver() as driver:
        handle = await driver.start_task(request("task", images[OS.LINUX]))
        assert (handle.target, handle.backend) == (Target.VZ_LINUX, "vz_linux")
        assert driver.node.composite.overlay_kind("task") is OverlayKind.GUEST_MANAGED
        mac.tools()
        assert (await driver.exec_task("task", ["/bin/sh", "-c", "echo $HELLO"], timeout_s=DEADLINE_S)).stdout == b"hello\n"
        await driver.destroy_task("task")
    assert mac.tools() == ["container"]


async def test_a_vm_label_goes_to_libkrun(mac: Mac, images: Mapping[OS, str]) -> None:
    async with mac.driver() as driver:
        handle = await driver.start_task(request("task", images[OS.LINUX], labels={"com.zlayer.isolation": "vm"}))
        assert (handle.target, handle.backend) == (Target.DELEGATE, "krun")
        assert driver.node.composite.overlay_kind("task") is OverlayKind.GUEST_MANAGED
        mac.tools()
        await driver.stop_task("task", timeout_s=DEADLINE_S, signal="SIGTERM")
        assert await driver.wait_task("task") == Exit(143, 15)
        await driver.destroy_task("task")
    assert mac.tools() == ["krunvm"]


async def test_where_both_fail_both_reasons_are_told_and_nothing_is_left(mac: Mac, images: Mapping[OS, str]) -> None:
    (mac.home / "no-sandbox").write_text("true")
    (mac.home / "full").write_text("true")
    async with mac.driver() as driver:
        with pytest.raises(Exception, match="number of VMs exceeds the system limit") as caught:
            await driver.start_task(request("task", images[OS.DARWIN]))
        assert "sandbox_apply" in str(caught.value.__cause__)
        with pytest.raises(NotFound):
            await driver.inspect_task("task")
    assert not [*mac.home.glob("tart-*"), *mac.state.glob("*/c/*")]


async def test_the_node_tells_what_it_runs(mac: Mac) -> None:
    async with mac.driver() as driver:
        told = (await driver.node.fingerprint()).attributes
    assert {key.removeprefix("driver.zlayer."): value for key, value in told.items() if ".target." in key or ".os." in key} == {
        "target.primary": "seatbelt",
        "target.delegate": "krun",
        "target.vz": "vz",
        "target.vz_linux": "vz_linux",
        "os.darwin": True,
        "os.linux": True,
    }
    assert told["driver.zlayer.vz_linux.version"] == "1.2.2"
