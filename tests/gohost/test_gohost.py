"""The plugin under the real go-plugin library, launched, driven, killed and reattached as Nomad's client does it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.gohost.bridge import GoHost, Refused
from tests.gohost.conftest import Open
from zlayer_driver.wire._gen import base_pb2, driver_pb2, task_pb2

pytestmark = pytest.mark.needs("go", "linux")

SCRIPTED = [sys.executable, "-m", "tests.doubles.scripted_driver"]
REAL = [sys.executable, "-c", "from zlayer_driver.cli.main import entry; entry()"]
ID = "6b1e2d0e-30f4-4b0c-9d7c-55b3a2f0c001/web/1a2b3c4d"
BASE = base_pb2.DESCRIPTOR.services_by_name["BasePlugin"].methods_by_name
DRIVER = driver_pb2.DESCRIPTOR.services_by_name["Driver"].methods_by_name
CONFIG = msgpack.packb({"state_dir": "/srv/z"})


async def start(go: GoHost, image: str, task_id: str = ID) -> task_pb2.TaskHandle:
    config = task_pb2.TaskConfig(id=task_id, name="web", alloc_id="a", msgpack_driver_config=msgpack.packb({"image": image}))
    reply: driver_pb2.StartTaskResponse = await go.call(DRIVER["StartTask"], driver_pb2.StartTaskRequest(task=config))
    return reply.handle


async def wait(go: GoHost, task_id: str = ID) -> tuple[int, int]:
    reply = await go.call(DRIVER["WaitTask"], driver_pb2.WaitTaskRequest(task_id=task_id))
    return reply.result.exit_code, reply.result.signal


async def set_config(go: GoHost, nomad_config: base_pb2.NomadConfig | None) -> None:
    request = base_pb2.SetConfigRequest(msgpack_config=CONFIG, nomad_config=nomad_config, plugin_api_version="v0.1.0")
    await go.call(BASE["SetConfig"], request)


def complaints(go: GoHost) -> list[dict[str, Any]]:
    return [line for line in go.log if line["@level"] not in {"trace", "debug", "info"}]


@pytest.mark.parametrize("argv", [SCRIPTED, REAL])
async def test_the_three_launches_of_an_agents_start(open_host: Open, socket_dir: Path, argv: list[str]) -> None:
    async with open_host() as go:
        assert (await go.launch(argv))["version"] == 2
        info = await go.call(BASE["PluginInfo"], base_pb2.PluginInfoRequest())
        assert (info.type, info.name, list(info.plugin_api_versions)) == (base_pb2.DRIVER, "zlayer", ["v0.1.0"])
        assert (await go.call(BASE["ConfigSchema"], base_pb2.ConfigSchemaRequest())).spec.object.attributes
        assert complaints(go) == []
    async with open_host() as go:
        await go.launch(argv)
        await set_config(go, None)
        await set_config(go, None)
        assert complaints(go) == []
    async with open_host() as go:
        await go.launch(argv)
        assert await go.ask("ping")
        await set_config(go, base_pb2.NomadConfig())
        before = time.monotonic()
        assert await go.ask("kill")
        assert time.monotonic() - before < 1.9
        assert complaints(go) == []
    assert list(socket_dir.iterdir()) == []


async def test_a_whole_life(go: GoHost) -> None:
    await go.launch(SCRIPTED)
    await set_config(go, base_pb2.NomadConfig())
    await go.call(DRIVER["Init"], driver_pb2.InitRequest())
    await go.logged("ready")
    fingerprint = await anext(go.stream(DRIVER["Fingerprint"], driver_pb2.FingerprintRequest()))
    assert fingerprint.attributes["driver.zlayer.targets"].int_val == 4
    events = go.stream(DRIVER["TaskEvents"], driver_pb2.TaskEventsRequest())
    handle = await start(go, "hold")
    assert handle.config.id == ID
    assert (await anext(events)).message == "Downloading image hold"
    waiting = [asyncio.create_task(wait(go)) for _ in range(3)]
    reply = await go.call(DRIVER["ExecTask"], driver_pb2.ExecTaskRequest(task_id=ID, command=["a", "b"]))
    assert (reply.stdout, reply.result.exit_code) == (b"a b", 3)
    inspected = await go.call(DRIVER["InspectTask"], driver_pb2.InspectTaskRequest(task_id=ID))
    assert inspected.task.state == task_pb2.RUNNING
    await go.call(DRIVER["StopTask"], driver_pb2.StopTaskRequest(task_id=ID))
    assert await asyncio.gather(*waiting) == [(143, 15)] * 3
    await go.call(DRIVER["DestroyTask"], driver_pb2.DestroyTaskRequest(task_id=ID, force=True))
    await go.call(DRIVER["StopTask"], driver_pb2.StopTaskRequest(task_id=ID))
    assert complaints(go) == []


@pytest.mark.parametrize(
    ("image", "code", "recoverable"),
    [
        ("fail:start", "Unknown", False),
        ("fail:spec", "InvalidArgument", False),
        ("fail:pull", "FailedPrecondition", True),
        ("fail:long", "Unknown", False),
        ("bug", "Internal", False),
    ],
)
async def test_a_failure_tells_nomad_whether_to_retry(go: GoHost, image: str, code: str, recoverable: bool) -> None:
    await go.launch(SCRIPTED)
    with pytest.raises(Refused) as caught:
        await start(go, image)
    assert (caught.value.code, caught.value.recoverable) == (code, recoverable)
    assert len(caught.value.text.splitlines()) == 1


async def test_missing_statistics_are_not_asked_for_again(go: GoHost) -> None:
    await go.launch(SCRIPTED)
    await start(go, "no-stats")
    with pytest.raises(Refused) as caught:
        await anext(go.stream(DRIVER["TaskStats"], driver_pb2.TaskStatsRequest(task_id=ID)))
    assert caught.value.recoverable is False


async def test_an_exec_session(go: GoHost) -> None:
    await go.launch(SCRIPTED)
    await start(go, "hold")
    request = driver_pb2.ExecTaskStreamingRequest
    setup = request(setup=request.Setup(task_id=ID, command=["cat"]))
    stdin = [driver_pb2.ExecTaskStreamingIOOperation(data=b"x" * 70_000), driver_pb2.ExecTaskStreamingIOOperation(close=True)]
    requests = [setup, request(), *(request(stdin=operation) for operation in stdin)]
    replies = [reply async for reply in go.stream(DRIVER["ExecTaskStreaming"], *requests)]
    assert [len(reply.stdout.data) for reply in replies] == [3, 70_000, 0, 0, 0]
    assert (replies[-1].exited, replies[-1].result.exit_code) == (True, 70_000 % 256)


async def test_thirty_tasks_at_once(go: GoHost) -> None:
    await go.launch(SCRIPTED)
    ids = [f"a/t/{number}" for number in range(30)]
    await asyncio.gather(*(start(go, f"exit:{number}", task_id) for number, task_id in enumerate(ids)))
    assert await asyncio.gather(*(wait(go, task_id) for task_id in ids)) == [(number, 0) for number in range(30)]


async def test_the_plugins_death_is_noticed_while_its_children_live(go: GoHost, socket_dir: Path) -> None:
    pid = (await go.launch(SCRIPTED))["pid"]
    handle = await start(go, "child")
    (child,) = (number for number in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()))
    try:
        waiting = asyncio.create_task(wait(go))
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Refused) as caught:
            await waiting
        assert caught.value.code == "Unavailable"
        await go.logged("plugin process exited")
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
    await go.launch(SCRIPTED)
    await go.call(DRIVER["Init"], driver_pb2.InitRequest())
    assert len(list(socket_dir.iterdir())) == 1
    handle.config.ClearField("msgpack_driver_config")
    await go.call(DRIVER["RecoverTask"], driver_pb2.RecoverTaskRequest(handle=handle))
    await go.call(DRIVER["StopTask"], driver_pb2.StopTaskRequest(task_id=ID))
    assert await wait(go) == (143, 15)


async def test_the_agent_dies_and_the_next_one_reattaches(open_host: Open, socket_dir: Path) -> None:
    async with open_host() as first:
        at = await first.launch(SCRIPTED)
        await first.call(DRIVER["Init"], driver_pb2.InitRequest())
        handle = await start(first, "hold")
        first.process.kill()
        await first.process.wait()
    async with open_host() as second:
        await second.ask("reattach", address=at["address"], pid=at["pid"])
        await second.call(BASE["PluginInfo"], base_pb2.PluginInfoRequest())
        await second.call(DRIVER["Init"], driver_pb2.InitRequest())
        await second.call(DRIVER["RecoverTask"], driver_pb2.RecoverTaskRequest(handle=handle))
        waiting = asyncio.create_task(wait(second))
        await second.call(DRIVER["StopTask"], driver_pb2.StopTaskRequest(task_id=ID))
        assert await waiting == (143, 15)
        assert await second.ask("kill")
    assert list(socket_dir.iterdir()) == []
