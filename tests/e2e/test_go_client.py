"""Real containers under the real go-plugin library: what a Nomad client sees of a task, and what each of the two deaths leaves."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from tests.e2e.conftest import PLUGIN, Fifo, Site
from tests.gohost.bridge import GoHost, Refused
from zlayer_driver.model import Exit, Resources, TaskRequest
from zlayer_driver.wire import codec, replies
from zlayer_driver.wire._gen import base_pb2, driver_pb2, task_pb2

pytestmark = pytest.mark.needs("root", "linux", "go", "runc", "conmon", "docker-registry", "skopeo", "busybox")

BASE = base_pb2.DESCRIPTOR.services_by_name["BasePlugin"].methods_by_name
DRIVER = driver_pb2.DESCRIPTOR.services_by_name["Driver"].methods_by_name


@asynccontextmanager
async def client(site: Site) -> AsyncIterator[GoHost]:
    async with GoHost.run(site.directory, {"TMPDIR": str(site.sockets)}) as go:
        yield go


async def launch(go: GoHost, site: Site) -> dict[str, object]:
    at = await go.launch(PLUGIN)
    config = msgpack.packb({"state_dir": str(site.directory / "state")})
    await go.call(BASE["SetConfig"], base_pb2.SetConfigRequest(msgpack_config=config, nomad_config=base_pb2.NomadConfig()))
    await go.call(DRIVER["Init"], driver_pb2.InitRequest())
    return at


async def start(go: GoHost, request: TaskRequest) -> task_pb2.TaskHandle:
    config = codec.config_for(request, msgpack.packb(dict(request.config)))
    reply: driver_pb2.StartTaskResponse = await go.call(DRIVER["StartTask"], driver_pb2.StartTaskRequest(task=config))
    return reply.handle


async def wait(go: GoHost, request: TaskRequest) -> Exit:
    reply = await go.call(DRIVER["WaitTask"], driver_pb2.WaitTaskRequest(task_id=request.id))
    return replies.exit_from(reply.result, reply.err)


async def destroy(go: GoHost, request: TaskRequest) -> None:
    await go.call(DRIVER["DestroyTask"], driver_pb2.DestroyTaskRequest(task_id=request.id, force=True))


async def test_exits_of_every_kind(site: Site) -> None:
    async with client(site) as go:
        await launch(go, site)
        small = Resources(memory_bytes=32 << 20)
        lives = [
            (site.task("exit 0"), (0, False)),
            (site.task("exit 7"), (7, False)),
            (site.task("dd if=/dev/zero of=/dev/null bs=200M count=1", resources=small), (137, True)),
        ]
        for request, expected in lives:
            await start(go, request)
            ended = await wait(go, request)
            await destroy(go, request)
            assert (ended.code, ended.oom_killed) == expected
        request = site.task("sleep 60")
        await start(go, request)
        await go.call(DRIVER["SignalTask"], driver_pb2.SignalTaskRequest(task_id=request.id, signal="SIGKILL"))
        assert await wait(go, request) == Exit(137, 9)
        await destroy(go, request)


async def test_a_command_that_is_not_there_fails_for_good(site: Site) -> None:
    async with client(site) as go:
        await launch(go, site)
        request = site.task("")
        with pytest.raises(Refused, match="'/bin/nonsense' is not in image") as caught:
            await start(go, replace(request, config={**request.config, "command": "/bin/nonsense", "args": []}))
        assert caught.value.recoverable is False


async def test_exec_and_stop(site: Site) -> None:
    async with client(site) as go:
        await launch(go, site)
        request = site.task("trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done")
        out = Fifo(request.stdout_path)
        out.open()
        await start(go, request)
        await out.until(b"up")
        command = ["sh", "-c", "echo here; exit 3"]
        reply = await go.call(DRIVER["ExecTask"], driver_pb2.ExecTaskRequest(task_id=request.id, command=command))
        assert (reply.stdout, reply.result.exit_code) == (b"here\n", 3)
        await go.call(DRIVER["StopTask"], driver_pb2.StopTaskRequest(task_id=request.id, timeout=codec.duration(10)))
        assert await wait(go, request) == Exit(5)
        await destroy(go, request)
        out.close()


async def test_the_plugin_is_killed_and_the_task_goes_on(site: Site) -> None:
    request = site.task("echo one; read x </local/go; echo two; exit 9")
    go_on = Path(request.alloc_dir, "task", "local", "go")
    os.mkfifo(go_on)
    out = Fifo(request.stdout_path)
    async with client(site) as go:
        at = await launch(go, site)
        out.open()
        handle = await start(go, request)
        await out.until(b"one\n")
        waiting = asyncio.create_task(wait(go, request))
        os.kill(int(str(at["pid"])), signal.SIGKILL)
        with pytest.raises(Refused, match="Unavailable"):
            await waiting
        await go.logged("plugin process exited")
        await launch(go, site)
        await go.call(DRIVER["RecoverTask"], driver_pb2.RecoverTaskRequest(handle=handle))
        await asyncio.to_thread(go_on.write_text, "go\n")
        assert await wait(go, request) == Exit(9)
        await out.ended.wait()
        await destroy(go, request)
    out.close()
    assert bytes(out.data) == b"one\ntwo\n"


async def test_the_agent_is_killed_and_the_task_goes_on(site: Site) -> None:
    request = site.task("read x </local/go; exit 9")
    go_on = Path(request.alloc_dir, "task", "local", "go")
    os.mkfifo(go_on)
    out = Fifo(request.stdout_path)
    out.open()
    async with client(site) as first:
        at = await launch(first, site)
        handle = await start(first, request)
        first.process.kill()
        await first.process.wait()
    async with client(site) as second:
        await second.ask("reattach", address=at["address"], pid=at["pid"])
        await second.call(DRIVER["Init"], driver_pb2.InitRequest())
        handle.config.ClearField("msgpack_driver_config")
        await second.call(DRIVER["RecoverTask"], driver_pb2.RecoverTaskRequest(handle=handle))
        await asyncio.to_thread(go_on.write_text, "go\n")
        assert await wait(second, request) == Exit(9)
        await destroy(second, request)
        await second.ask("kill")
    out.close()


def read(fifo: int, count: int) -> bytes:
    """So many bytes in small pieces, or all that come by the end of the log."""
    data = b""
    while len(data) < count and (piece := os.read(fifo, min(1000, count - len(data)))):
        data += piece
    return data


async def test_a_slow_log_collector_that_goes_away_and_comes_back_gets_every_line(site: Site) -> None:
    """Meanwhile the task is held up, whoever else comes and goes, and not killed."""
    wanted = b"".join(b"line %d\n" % number for number in range(30_000))
    request = site.task("awk 'BEGIN { for (i = 0; i < 30000; i++) print \"line\", i }'; touch /local/done; exit 9")
    done = Path(request.alloc_dir, "task", "local", "done")
    Path(request.stdout_path).unlink()
    os.mkfifo(request.stdout_path)
    async with client(site) as go:
        at = await launch(go, site)
        handle = await start(go, request)
        collector = os.open(request.stdout_path, os.O_RDONLY)
        early = await asyncio.to_thread(read, collector, 100_000)
        os.close(collector)
        os.kill(int(str(at["pid"])), signal.SIGKILL)
        await go.logged("plugin process exited")
        await launch(go, site)
        await go.call(DRIVER["RecoverTask"], driver_pb2.RecoverTaskRequest(handle=handle))
        inspected = await go.call(DRIVER["InspectTask"], driver_pb2.InspectTaskRequest(task_id=request.id))
        assert (inspected.task.state, done.exists()) == (task_pb2.RUNNING, False)
        collector = os.open(request.stdout_path, os.O_RDONLY)
        late = await asyncio.to_thread(read, collector, len(wanted))
        os.close(collector)
        assert early + late == wanted
        assert await wait(go, request) == Exit(9)
        assert done.exists()
        await destroy(go, request)


async def test_a_task_whose_log_nobody_reads_can_be_stopped(site: Site) -> None:
    request = site.task("trap 'exit 5' TERM; echo up > /alloc/up; while :; do echo line; done")
    Path(request.stdout_path).unlink()
    up = Path(request.alloc_dir, "alloc", "up")
    for fifo in (request.stdout_path, up):
        os.mkfifo(fifo)
    async with client(site) as go:
        await launch(go, site)
        await start(go, request)
        assert await asyncio.to_thread(up.read_text) == "up\n"
        await go.call(DRIVER["StopTask"], driver_pb2.StopTaskRequest(task_id=request.id, timeout=codec.duration(0.2)))
        assert (await wait(go, request)).code in {5, 137}
        await destroy(go, request)


async def test_tasks_at_once_keep_to_themselves(site: Site) -> None:
    """Two wait for each, as in a restart; half end by themselves, half are stopped."""
    async with client(site) as go:
        await launch(go, site)
        requests = [site.task(f"echo {number}; exit {number}" if number % 2 else "echo > /alloc/up; exec sleep 600") for number in range(8)]
        up = [Path(request.alloc_dir, "alloc", "up") for request in requests[::2]]
        for fifo in up:
            os.mkfifo(fifo)
        await asyncio.gather(*(start(go, request) for request in requests))
        for fifo in up:  # until a task is so far, SIGTERM ends runc's init, by a code of its own
            await asyncio.to_thread(fifo.read_text)
        waiting = asyncio.gather(*(wait(go, request) for request in requests for _ in range(2)))
        stopped = [driver_pb2.StopTaskRequest(task_id=request.id, timeout=codec.duration(0)) for request in requests[::2]]
        await asyncio.gather(*(go.call(DRIVER["StopTask"], request) for request in stopped))
        assert [ended.code for ended in await waiting] == [code for number in range(8) for code in [number if number % 2 else 137] * 2]
        logs = [Path(request.stdout_path).read_text() for request in requests]
        assert logs == ["" if number % 2 == 0 else f"{number}\n" for number in range(8)]
        await asyncio.gather(*(destroy(go, request) for request in requests))
