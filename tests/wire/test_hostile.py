"""Requests that no honest client sends: one sentence each, and the plugin lives on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import msgpack
import pytest

from tests.wire.conftest import Wire
from tests.wire.test_services import ID, refusal, start, task, wait
from zlayer_driver.errors import DriverError
from zlayer_driver.wire import status
from zlayer_driver.wire._gen import base_pb2, driver_pb2, task_pb2


def changed(**fields: Any) -> driver_pb2.StartTaskRequest:
    request = driver_pb2.StartTaskRequest(task=task("hold"))
    for name, value in fields.items():
        getattr(request.task, name).update(value) if isinstance(value, dict) else setattr(request.task, name, value)
    return request


def network(mode: int, path: str = "") -> driver_pb2.StartTaskRequest:
    request = driver_pb2.StartTaskRequest(task=task("hold"))
    request.task.network_isolation_spec.CopyFrom(task_pb2.NetworkIsolationSpec(mode=mode, path=path))  # type: ignore[arg-type]  # any number may come
    return request


def mount(**fields: Any) -> driver_pb2.StartTaskRequest:
    request = driver_pb2.StartTaskRequest(task=task("hold"))
    request.task.mounts.add(**fields)
    return request


DEEP = b"\x91" * 100_000


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (driver_pb2.StartTaskRequest(), "'' is no task id"),
        (changed(id="../../etc/x"), "is no task id"),
        (changed(id="a//b"), "is no task id"),
        (changed(id="a/b\n"), "is no task id"),
        (changed(msgpack_driver_config=b"\xc1"), "config cannot be read"),
        (changed(msgpack_driver_config=b"\x81\xa1a"), "config cannot be read"),
        (changed(msgpack_driver_config=DEEP), "config cannot be read"),
        (changed(msgpack_driver_config=b"\x81\xa1a" + b"\x91" * 500 + b"\x01"), "nested deeper than 16 levels"),
        (changed(msgpack_driver_config=b"\xa1\xff"), "config cannot be read"),
        (changed(msgpack_driver_config=b"\x81\x01\x02"), "config cannot be read"),
        (changed(msgpack_driver_config=b"\x81\x81\xa1a\x01\x02"), "config cannot be read"),
        (changed(msgpack_driver_config=b"\xdd\xff\xff\xff\xff"), "config cannot be read"),
        (changed(msgpack_driver_config=msgpack.packb([1, 2])), "config is a list, not a map"),
        (changed(msgpack_driver_config=msgpack.packb({"command": b"x\0y"})), "config.command is bytes"),
        (changed(msgpack_driver_config=msgpack.packb({"labels": [{b"a\0": "b"}]})), "config.labels[0] is bytes"),
        (changed(msgpack_driver_config=msgpack.packb({"args": ["a\0b"]})), "config.args[0] holds a NUL"),
        (changed(env={"A": "x\0y"}), "env.A holds a NUL"),
        (changed(user="root\0"), "holds a NUL"),
        (network(task_pb2.NetworkIsolationSpec.GROUP), "the group's network has no namespace path"),
        (network(task_pb2.NetworkIsolationSpec.TASK), 'network mode "driver" is not available'),
        (network(99), 'network mode "driver" is not available'),
        (mount(task_path="/x", propagation_mode="sideways"), "propagation mode 'sideways'"),
        (mount(task_path="/x", propagation_mode="世" * 3000), "propagation mode '世世"),
        (mount(task_path="/x\0"), "holds a NUL"),
    ],
)
async def test_a_start_that_cannot_be(wire: Wire, request_: driver_pb2.StartTaskRequest, says: str) -> None:
    code, text, recoverable = await refusal(wire.driver("start_task", request_))
    assert code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED}
    assert says in text
    assert "\n" not in text
    assert not recoverable
    await start(wire, "exit:0")
    assert (await wait(wire)).result.exit_code == 0


async def test_a_megabyte_of_environment_arrives(wire: Wire) -> None:
    await wire.driver("start_task", changed(env={"BIG": "x" * (1 << 20)}))
    assert len(wire.under.requests[0].env["BIG"]) == 1 << 20


def handle(spoil: Callable[[task_pb2.TaskHandle], object]) -> driver_pb2.RecoverTaskRequest:
    message = task_pb2.TaskHandle(version=1, config=task("hold"), state=task_pb2.RUNNING, driver_state=b"{}")
    spoil(message)
    return driver_pb2.RecoverTaskRequest(handle=message)


@pytest.mark.parametrize(
    "request_",
    [
        driver_pb2.RecoverTaskRequest(),
        handle(lambda message: message.ClearField("config")),
        handle(lambda message: message.ClearField("driver_state")),
        handle(lambda message: setattr(message, "version", 7)),
        handle(lambda message: setattr(message, "driver_state", b"\xff" * 100)),
        handle(lambda message: setattr(message, "driver_state", b"[" * 100_000)),
        handle(lambda message: setattr(message, "driver_state", b'{"v":1,"task_id":"other","target":"primary","backend":"b","data":{}}')),
    ],
)
async def test_a_handle_that_is_none(wire: Wire, request_: driver_pb2.RecoverTaskRequest) -> None:
    assert (await refusal(wire.driver("recover_task", request_)))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert not wire.under.tasks


async def test_exec_and_signal_without_sense(wire: Wire) -> None:
    await start(wire, "hold")
    assert "no command" in (await refusal(wire.driver("exec_task", driver_pb2.ExecTaskRequest(task_id=ID))))[1]
    assert "is no signal" in (await refusal(wire.driver("signal_task", driver_pb2.SignalTaskRequest(task_id=ID, signal="boo"))))[1]


@pytest.mark.parametrize(
    "packed", [b"\xc1", msgpack.packb({"state_dir": "relative"}), msgpack.packb({"nonsense": 1}), msgpack.packb("text")]
)
async def test_a_plugin_config_that_does_not_fit(wire: Wire, packed: bytes) -> None:
    call = wire.base("set_config", base_pb2.SetConfigRequest(msgpack_config=packed))
    assert (await refusal(call))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert not wire.under.configs


async def test_bytes_that_are_no_message(wire: Wire) -> None:
    raw: Any = wire.channel.unary_unary("/hashicorp.nomad.plugins.drivers.proto.Driver/StartTask")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw(b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    await start(wire, "exit:0")


async def test_an_unknown_method_is_unimplemented(wire: Wire) -> None:
    raw: Any = wire.channel.unary_unary("/hashicorp.nomad.plugins.drivers.proto.Driver/Nonsense")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_file_name_that_is_no_text_can_be_told() -> None:
    assert status.encode(DriverError("no file a\udcffb"))[1] == "no file a\\udcffb"
