"""Exec sessions and statistics through real gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.doubles.scripted_driver import AT
from tests.wire.conftest import Wire
from tests.wire.test_services import ID, refusal, start
from zlayer_driver.wire import stats
from zlayer_driver.wire._gen import base_pb2, driver_pb2, task_pb2

Request = driver_pb2.ExecTaskStreamingRequest
HEARTBEAT = Request()
CLOSE = Request(stdin=driver_pb2.ExecTaskStreamingIOOperation(close=True))


def setup(*command: str, tty: bool = False) -> Request:
    return Request(setup=Request.Setup(task_id=ID, command=command, tty=tty))


def data(raw: bytes) -> Request:
    return Request(stdin=driver_pb2.ExecTaskStreamingIOOperation(data=raw))


async def said(*requests: Request) -> AsyncIterator[Request]:
    for request in requests:
        yield request


async def session(wire: Wire, *requests: Request) -> list[driver_pb2.ExecTaskStreamingResponse]:
    return [reply async for reply in wire.driver("exec_task_streaming", said(*requests))]


async def test_a_session_with_input_and_heartbeats(wire: Wire) -> None:
    await start(wire, "hold")
    replies = await session(wire, setup("cat", "-"), HEARTBEAT, data(b"ab"), HEARTBEAT, HEARTBEAT, data(b"c"), CLOSE)
    assert [reply.stdout.data for reply in replies[:3]] == [b"cat -", b"AB", b"C"]
    assert [(reply.stdout.close, reply.stderr.close) for reply in replies[3:5]] == [(True, False), (False, True)]
    (last,) = replies[5:]
    assert last.exited
    assert last.result.exit_code == 3


async def test_much_input_arrives_whole(wire: Wire) -> None:
    await start(wire, "hold")
    chunk = b"x" * (1 << 20)
    replies = await session(wire, setup("cat"), *[data(chunk)] * 8, CLOSE)
    assert sum(len(reply.stdout.data) for reply in replies[1:]) == 8 << 20


async def test_a_terminal_has_one_stream_and_a_size(wire: Wire) -> None:
    await start(wire, "hold")
    size = Request(tty_size=Request.TerminalSize(height=24, width=80))
    replies = await session(wire, setup("sh", tty=True), size, CLOSE)
    assert [reply.stdout.data for reply in replies[:2]] == [b"sh", b"24x80"]
    assert not any(reply.HasField("stderr") for reply in replies)
    assert replies[-1].exited


@pytest.mark.parametrize("first", [[], [HEARTBEAT], [data(b"x")], [Request(setup=Request.Setup(task_id=ID))]])
async def test_a_session_starts_with_a_command(wire: Wire, first: list[Request]) -> None:
    await start(wire, "hold")
    code, text, _ = await refusal(anext(aiter(wire.driver("exec_task_streaming", said(*first)))))
    assert (code, text.partition(":")[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "exec has no command")


async def test_a_session_in_a_task_that_is_not_there(wire: Wire) -> None:
    assert (await refusal(anext(aiter(wire.driver("exec_task_streaming", said(setup("sh")))))))[0] is grpc.StatusCode.NOT_FOUND


async def test_a_client_that_goes_ends_the_command(wire: Wire) -> None:
    await start(wire, "hold")
    call = wire.driver("exec_task_streaming", None)
    await call.write(setup("cat"))
    assert (await call.read()).stdout.data == b"cat"
    assert wire.under.sessions == 1
    call.cancel()
    await wire.under.quiet.wait()
    assert wire.under.sessions == 0


async def test_statistics_have_rates_from_the_second_sample_on(wire: Wire) -> None:
    core = base_pb2.ClientTopologyCore
    topology = base_pb2.ClientTopology(cores=[core(base_speed=2000), core(max_speed=3000), core(base_speed=9000, disable=True)])
    nomad = base_pb2.NomadConfig(driver=base_pb2.NomadDriverConfig(Topology=topology))
    await wire.base("set_config", base_pb2.SetConfigRequest(nomad_config=nomad))
    await start(wire, "hold")
    call = wire.driver("task_stats", driver_pb2.TaskStatsRequest(task_id=ID, collection_interval=Duration(seconds=1)))
    stream = aiter(call)
    first, second = (await anext(stream)).stats, (await anext(stream)).stats
    call.cancel()
    assert first.timestamp.ToDatetime(AT.tzinfo) == AT
    assert first.agg_resource_usage.memory.usage == 4096
    assert list(first.agg_resource_usage.memory.measured_fields) == [task_pb2.MemoryUsage.USAGE]
    assert not first.agg_resource_usage.cpu.measured_fields
    cpu = second.agg_resource_usage.cpu
    assert (cpu.percent, cpu.system_mode, cpu.user_mode, cpu.total_ticks) == (50.0, 10.0, 40.0, 1250.0)
    assert len(cpu.measured_fields) == 4
    assert second.HasField("timestamp")


def test_the_operators_compute_replaces_the_measured() -> None:
    cores = [base_pb2.ClientTopologyCore(guess_speed=1000) for _ in range(4)]
    assert stats.core_mhz(base_pb2.ClientTopology(cores=cores)) == 1000
    assert stats.core_mhz(base_pb2.ClientTopology(cores=cores, override_total_compute=8000)) == 2000
    assert stats.core_mhz(base_pb2.ClientTopology()) == 0
