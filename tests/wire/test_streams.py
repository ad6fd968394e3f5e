"""Exec sessions and statistics through real gRPC."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.doubles.scripted_driver import AT
from tests.wire.conftest import Wire
from tests.wire.test_services import ID, refusal, start
from zlayer_driver.readings import ProcessUsage, UsageSample
from zlayer_driver.wire import stats, streams
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


@pytest.mark.parametrize(("size", "told"), [((24, 80), b"24x80"), ((-1, 70_000), b"0x65535")])
async def test_a_terminal_has_one_stream_and_a_size(wire: Wire, size: tuple[int, int], told: bytes) -> None:
    await start(wire, "hold")
    height, width = size
    resize = Request(tty_size=Request.TerminalSize(height=height, width=width))
    replies = await session(wire, setup("sh", tty=True), resize, CLOSE)
    assert [reply.stdout.data for reply in replies[:2]] == [b"sh", told]
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


async def test_a_quiet_session_beats_until_it_has_something_to_say() -> None:
    """An agent ends the call of a client that is gone once it has something to tell it."""
    word, said_all = asyncio.Event(), asyncio.Event()

    async def replies() -> AsyncGenerator[driver_pb2.ExecTaskStreamingResponse, None]:
        try:
            await word.wait()
            yield driver_pb2.ExecTaskStreamingResponse(exited=True)
        finally:
            said_all.set()

    session = streams.beating(replies(), every_s=0.001)
    assert [await anext(session) for _ in range(3)] == [driver_pb2.ExecTaskStreamingResponse()] * 3
    word.set()
    assert [reply.exited async for reply in session if reply.exited] == [True]
    assert said_all.is_set()


async def test_a_quiet_session_that_is_cancelled_ends_the_command() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def replies() -> AsyncGenerator[driver_pb2.ExecTaskStreamingResponse, None]:
        try:
            begun.set()
            await asyncio.Event().wait()
            yield driver_pb2.ExecTaskStreamingResponse()
        finally:
            ended.set()

    call = asyncio.ensure_future(anext(streams.beating(replies())))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ended.is_set()


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


def sample(at_s: int, **measured: Any) -> UsageSample:
    nothing = UsageSample(at=AT + timedelta(seconds=at_s), cpu_total_ns=0, memory_bytes=1, memory_limit_bytes=0)
    return dataclasses.replace(nothing, **measured)


def test_all_that_is_measured_is_told_and_named() -> None:
    memory, cpu = task_pb2.MemoryUsage, task_pb2.CPUUsage
    parts = {
        "memory_rss_bytes": 2,
        "memory_cache_bytes": 3,
        "memory_peak_bytes": 4,
        "memory_kernel_bytes": 5,
        "memory_kernel_peak_bytes": 6,
    }
    throttled = {"cpu_throttled_periods": 0, "cpu_throttled_ns": 8}
    told = stats.Meter(1000, 1).message(sample(0, **parts, memory_swap_bytes=0, **throttled)).agg_resource_usage
    assert sorted(told.memory.measured_fields) == sorted(memory.Fields.values())
    assert (told.memory.rss, told.memory.cache, told.memory.max_usage, told.memory.usage) == (2, 3, 4, 1)
    assert (told.memory.kernel_usage, told.memory.kernel_max_usage, told.memory.swap) == (5, 6, 0)
    assert list(told.cpu.measured_fields) == [cpu.THROTTLED_PERIODS, cpu.THROTTLED_TIME]
    assert (told.cpu.throttled_periods, told.cpu.throttled_time) == (0, 8)


def test_each_process_has_its_own_rates() -> None:
    meter = stats.Meter(2000, 1)
    second = 1_000_000_000
    before = {7: ProcessUsage(0, 0, 100), 8: ProcessUsage(9 * second, 0, 100)}
    meter.message(sample(0, processes=before))
    told = meter.message(
        sample(1, processes={7: ProcessUsage(second // 2, second // 4, 200), 8: ProcessUsage(0, 0, 1)})
    ).resource_usage_by_pid
    assert told["7"].memory.rss == 200
    assert list(told["7"].memory.measured_fields) == [task_pb2.MemoryUsage.RSS]
    assert (told["7"].cpu.percent, told["7"].cpu.system_mode, told["7"].cpu.total_ticks) == (75.0, 25.0, 1500.0)
    assert not told["8"].cpu.measured_fields, "its pid was used again"


def test_without_a_topology_there_are_no_ticks_and_no_part_beyond_the_whole() -> None:
    meter = stats.Meter(0, 1)
    meter.message(sample(0, cpu_total_ns=100, cpu_system_ns=100))
    cpu = meter.message(sample(1, cpu_total_ns=200, cpu_system_ns=900)).agg_resource_usage.cpu
    assert task_pb2.CPUUsage.TOTAL_TICKS not in cpu.measured_fields
    assert (cpu.user_mode, cpu.system_mode) == (0.0, cpu.percent)


def test_the_operators_compute_replaces_the_measured() -> None:
    cores = [base_pb2.ClientTopologyCore(guess_speed=1000) for _ in range(4)]
    assert stats.core_mhz(base_pb2.ClientTopology(cores=cores)) == 1000
    assert stats.core_mhz(base_pb2.ClientTopology(cores=cores, override_total_compute=8000)) == 2000
    assert stats.core_mhz(base_pb2.ClientTopology()) == 0
