"""What an engine's containers go through beyond the contract: the driver killed, the follower killed, slow logs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.contract.test_oci import busybox, pulled
from tests.host import engine_lab
from zlayer_driver.backends.engine import EngineBackend
from zlayer_driver.backends.engine_api import PODMAN, Api
from zlayer_driver.composite import Composite
from zlayer_driver.config import PluginConfig
from zlayer_driver.errors import EngineError, NotFound
from zlayer_driver.host.pidfd import PidFd
from zlayer_driver.host.processes import capture
from zlayer_driver.model import Exit, Handle, Health, PullPolicy, Target, TaskSpec, TaskState
from zlayer_driver.node import Node

pytestmark = [pytest.mark.needs(*engine_lab.PODMAN_NEEDS, "busybox", "docker-registry"), engine_lab.ONE_AT_A_TIME]

__all__ = ["busybox", "pulled"]  # fixtures of the OCI backend's suite: the images are the same

_DEADLINE_S = 30.0
_STARTS = """
import asyncio, json, os, signal, sys
from pathlib import Path
from zlayer_driver.backends.engine import EngineBackend
from zlayer_driver.backends.engine_api import PODMAN, Api
from zlayer_driver.model import TaskSpec

root, socket, image, script = sys.argv[1:]
spec = TaskSpec(id="task", name="task", image=image, command="/bin/sh", args=("-c", script), stdout_path=f"{root}/out")
print(json.dumps(asyncio.run(EngineBackend(Api(PODMAN, socket), Path(root)).start(spec))), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def socket(pulled: str) -> Iterator[str]:
    with engine_lab.podman() as served:
        engine_lab.pull(served, pulled)
        yield served


@pytest.fixture
def backend(tmp_path: Path, socket: str) -> Iterator[EngineBackend]:
    yield EngineBackend(Api(PODMAN, socket), tmp_path)
    left = [*engine_lab.containers(socket), *engine_lab.followers(socket), *tmp_path.glob("*.kept"), *tmp_path.glob("*.log")]
    engine_lab.remove_all(socket)
    assert not left


def _spec(root: Path, image: str, script: str, **changes: object) -> TaskSpec:
    fields = {"id": "task", "name": "task", "image": image, "command": "/bin/sh", "args": ("-c", script), "stdout_path": f"{root}/out"}
    return TaskSpec(**{**fields, **changes})  # type: ignore[arg-type]  # the fields' own types are checked where they are used


async def _start(backend: EngineBackend, spec: TaskSpec) -> Handle:
    return Handle(spec.id, Target.PRIMARY, backend.name, await backend.start(spec))


async def _read(fifo: Path) -> str:
    """All of it, up to the end of its last writer; one of them has it open by now."""
    reader = asyncio.StreamReader()
    pipe = os.fdopen(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb")
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        async with asyncio.timeout(_DEADLINE_S):
            return (await reader.read()).decode()
    finally:
        transport.close()


async def _ended(backend: EngineBackend, handle: Handle) -> Exit:
    async with asyncio.timeout(_DEADLINE_S):
        return await backend.wait(handle)


async def _go(backend: EngineBackend, handle: Handle) -> None:
    """The container may end before the engine has said how the command did."""
    with suppress(NotFound):
        await backend.exec(handle, ["sh", "-c", ": >/go"], timeout_s=_DEADLINE_S)


async def test_the_killed_driver_costs_no_line_and_no_exit_code(tmp_path: Path, socket: str, pulled: str, backend: EngineBackend) -> None:
    os.mkfifo(tmp_path / "out")
    script = "echo before; until [ -e /go ]; do sleep 0.02; done; echo after; exit 7"
    argv = [sys.executable, "-c", _STARTS, str(tmp_path), socket, pulled, script]
    driver = await capture(argv, timeout_s=_DEADLINE_S)
    assert driver.status == -signal.SIGKILL, driver.stderr
    handle = Handle.loads(Handle("task", Target.PRIMARY, "podman", json.loads(driver.stdout)).dumps())
    reading = asyncio.create_task(_read(tmp_path / "out"))
    await _go(backend, handle)
    await backend.recover(handle)
    assert await _ended(backend, handle) == Exit(7)
    assert await reading == "before\nafter\n"
    await backend.destroy(handle)


async def test_a_killed_follower_is_replaced(tmp_path: Path, socket: str, pulled: str, backend: EngineBackend) -> None:
    os.mkfifo(tmp_path / "out")
    script = "until [ -e /go ]; do sleep 0.02; done; echo heard; exit 3"
    handle = await _start(backend, _spec(tmp_path, pulled, script))
    (follower,) = engine_lab.followers(socket)
    with PidFd(os.pidfd_open(int(follower.split()[1]))) as process:
        process.send(signal.SIGKILL)
        await process.wait()
    await backend.recover(handle)
    assert len(engine_lab.followers(socket)) == 1
    reading = asyncio.create_task(_read(tmp_path / "out"))
    await _go(backend, handle)
    assert await _ended(backend, handle) == Exit(3)
    assert await reading == "heard\n"
    await backend.destroy(handle)


async def test_much_output_waits_for_its_reader_and_is_whole(tmp_path: Path, pulled: str, backend: EngineBackend) -> None:
    os.mkfifo(tmp_path / "out")
    handle = await _start(backend, _spec(tmp_path, pulled, "i=0; while [ $i -lt 40000 ]; do echo $i; i=$((i+1)); done"))
    reading = asyncio.create_task(_read(tmp_path / "out"))
    assert await reading == "".join(f"{number}\n" for number in range(40000))
    assert await _ended(backend, handle) == Exit(0)
    await backend.destroy(handle)


async def test_a_log_that_nobody_reads_hides_no_exit(tmp_path: Path, pulled: str, backend: EngineBackend) -> None:
    os.mkfifo(tmp_path / "out")
    handle = await _start(backend, _spec(tmp_path, pulled, ": >/up; while :; do echo a line that nobody reads; done"))
    # Before it is up, runc itself has the pid, and ends by the signal with a code of its own.
    up = await backend.exec(handle, ["sh", "-c", "until [ -e /up ]; do sleep 0.02; done"], timeout_s=_DEADLINE_S)
    assert up.exit == Exit(0)
    async with asyncio.timeout(_DEADLINE_S):
        await backend.stop(handle, timeout_s=0, signal="SIGTERM")
    assert await _ended(backend, handle) == Exit(137, 9)
    await backend.destroy(handle)


async def test_a_paused_task_is_there_and_can_be_stopped(tmp_path: Path, pulled: str, backend: EngineBackend) -> None:
    handle = await _start(backend, _spec(tmp_path, pulled, "sleep 1000", stdout_path="/dev/null"))
    await backend.pause(handle)
    await backend.recover(handle)
    assert await backend.state(handle) is TaskState.RUNNING
    async with asyncio.timeout(_DEADLINE_S):
        await backend.stop(handle, timeout_s=0, signal="SIGTERM")
    assert await _ended(backend, handle) == Exit(137, 9)
    await backend.destroy(handle)


async def test_an_engine_stands_in_as_primary(tmp_path: Path, socket: str, pulled: str) -> None:
    config = PluginConfig(state_dir=str(tmp_path / "state"), primary="podman", engine_socket=socket)
    node = Node(config)
    assert (await node.probe())[Target.PRIMARY].health is Health.HEALTHY
    await node.composite.pull(pulled, policy=PullPolicy.IF_NOT_PRESENT, auth=None)
    composite: Composite = node.composite
    handle = await composite.create(_spec(tmp_path, pulled, "exit 4"))
    assert (handle.target, handle.backend, await composite.wait("task")) == (Target.PRIMARY, "podman", Exit(4))
    await composite.destroy("task")
    await node.close()


async def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    absent = EngineBackend(Api(PODMAN, str(tmp_path / "no.sock")), tmp_path)
    found = await absent.probe()
    assert found.health is Health.UNDETECTED
    assert "engine_socket" in found.description
    with pytest.raises(EngineError, match=r"no\.sock") as caught:
        await absent.start(TaskSpec(id="task", name="task", image="example.org/app:v1"))
    assert caught.value.recoverable
