"""The services through real gRPC, in the order in which a Nomad client calls them."""

from __future__ import annotations

import asyncio

import grpc
import msgpack
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.wire.conftest import Wire
from zlayer_driver.model import GroupPort, Handle
from zlayer_driver.wire import status
from zlayer_driver.wire._gen import base_pb2, driver_pb2, task_pb2
from zlayer_driver.wire._gen.status_pb2 import Status
from zlayer_driver.wire._gen.structs_pb2 import RecoverableError

ID = "6b1e2d0e-30f4-4b0c-9d7c-55b3a2f0c001/web/1a2b3c4d"


def task(image: str, task_id: str = ID) -> task_pb2.TaskConfig:
    return task_pb2.TaskConfig(
        id=task_id, name="web", alloc_id=task_id.split("/", maxsplit=1)[0], msgpack_driver_config=msgpack.packb({"image": image})
    )


async def start(wire: Wire, image: str, task_id: str = ID) -> task_pb2.TaskHandle:
    reply: driver_pb2.StartTaskResponse = await wire.driver("start_task", driver_pb2.StartTaskRequest(task=task(image, task_id)))
    return reply.handle


async def wait(wire: Wire, task_id: str = ID) -> driver_pb2.WaitTaskResponse:
    reply: driver_pb2.WaitTaskResponse = await wire.driver("wait_task", driver_pb2.WaitTaskRequest(task_id=task_id))
    return reply


async def refusal(call: object) -> tuple[grpc.StatusCode, str, bool]:
    """Code, text and recoverability of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]  # a gRPC call object, which the stubs do not describe
    error = caught.value
    (raw,) = (value for key, value in error.trailing_metadata() or () if key == status.DETAILS)
    packed = Status.FromString(bytes(raw))  # type: ignore[arg-type]  # a -bin key is bytes
    (detail,) = packed.details
    assert detail.type_url == "type.googleapis.com/hashicorp.nomad.plugins.shared.structs.RecoverableError"
    assert (packed.code, packed.message) == (error.code().value[0], error.details())
    return error.code(), error.details() or "", RecoverableError.FromString(detail.value).recoverable


async def test_a_whole_life(wire: Wire) -> None:
    info = await wire.base("plugin_info", base_pb2.PluginInfoRequest())
    assert (info.type, list(info.plugin_api_versions), info.plugin_version, info.name) == (base_pb2.DRIVER, ["v0.1.0"], "0.1.0", "zlayer")
    schema = await wire.base("config_schema", base_pb2.ConfigSchemaRequest())
    assert schema.spec.object.attributes["state_dir"].Attr.type == "string"
    packed = msgpack.packb({"state_dir": "/srv/z", "allow_caps": None})
    await wire.base("set_config", base_pb2.SetConfigRequest(msgpack_config=packed))
    await wire.base("set_config", base_pb2.SetConfigRequest(msgpack_config=packed, nomad_config=base_pb2.NomadConfig()))
    assert [(config.state_dir, validate_only) for config, validate_only in wire.under.configs] == [("/srv/z", True), ("/srv/z", False)]
    await wire.driver("init", driver_pb2.InitRequest())
    fingerprint = await anext(aiter(wire.driver("fingerprint", driver_pb2.FingerprintRequest())))
    assert (fingerprint.health, fingerprint.err) == (driver_pb2.FingerprintResponse.HEALTHY, "")
    schema = await wire.driver("task_config_schema", driver_pb2.TaskConfigSchemaRequest())
    assert schema.spec.object.attributes["image"].Attr.required
    handle = await start(wire, "hold")
    waiting = [asyncio.create_task(wait(wire)) for _ in range(3)]
    reply = await wire.driver(
        "exec_task", driver_pb2.ExecTaskRequest(task_id=ID, command=["a", "b"], timeout=Duration(seconds=1, nanos=500_000_000))
    )
    assert (reply.stdout, reply.stderr, reply.result.exit_code) == (b"a b", b"1.5", 3)
    await wire.driver("signal_task", driver_pb2.SignalTaskRequest(task_id=ID, signal="SIGHUP"))
    await wire.driver("stop_task", driver_pb2.StopTaskRequest(task_id=ID, signal="SIGINT"))
    for ended in [*(await asyncio.gather(*waiting)), await wait(wire)]:
        assert (ended.result.exit_code, ended.result.signal, ended.result.oom_killed, ended.err) == (130, 2, False, "")
    await wire.driver("destroy_task", driver_pb2.DestroyTaskRequest(task_id=ID, force=True))
    assert Handle.loads(handle.driver_state).task_id == ID


async def test_capabilities(wire: Wire) -> None:
    reply = await wire.driver("capabilities", driver_pb2.CapabilitiesRequest())
    can = reply.capabilities
    assert can.send_signals
    assert can.exec
    assert can.fs_isolation == driver_pb2.DriverCapabilities.IMAGE
    modes = task_pb2.NetworkIsolationSpec
    assert list(can.network_isolation_modes) == [modes.HOST, modes.GROUP, modes.NONE]
    assert can.mount_configs == driver_pb2.DriverCapabilities.ANY_MOUNTS
    assert not can.must_create_network


async def test_fingerprint_attributes_keep_their_types(wire: Wire) -> None:
    reply = await anext(aiter(wire.driver("fingerprint", driver_pb2.FingerprintRequest())))
    kinds = {key: value.WhichOneof("value") for key, value in reply.attributes.items()}
    assert kinds == {"driver.zlayer.version": "string_val", "driver.zlayer.targets": "int_val", "driver.zlayer.kvm": "bool_val"}


async def test_the_handle_echoes_the_whole_config(wire: Wire) -> None:
    config = task("hold")
    config.env["A"] = "1"
    reply = await wire.driver("start_task", driver_pb2.StartTaskRequest(task=config))
    assert reply.handle.config == config
    assert (reply.handle.version, reply.handle.state) == (1, task_pb2.RUNNING)


async def test_recovery_without_the_config_block(wire: Wire) -> None:
    handle = await start(wire, "exit:7")
    wire.under.tasks.clear()
    handle.config.ClearField("msgpack_driver_config")
    for _ in range(2):
        await wire.driver("recover_task", driver_pb2.RecoverTaskRequest(handle=handle))
    assert wire.under.requests[-1].config == {}
    assert (await wait(wire)).result.exit_code == 7


async def test_a_lost_exit_code_is_an_error_text(wire: Wire) -> None:
    await start(wire, "lost")
    assert (await wait(wire)).err == "the exit code is lost"


@pytest.mark.parametrize(("signal", "code"), [("SIGINT", 130), ("SIGNONSENSE", 143), ("", 143)])
async def test_a_signal_that_is_none_stops_the_task_all_the_same(
    wire: Wire, caplog: pytest.LogCaptureFixture, signal: str, code: int
) -> None:
    await start(wire, "hold")
    await wire.driver("stop_task", driver_pb2.StopTaskRequest(task_id=ID, signal=signal))
    assert (await wait(wire)).result.exit_code == code
    assert ("'SIGNONSENSE' is no signal" in caplog.text) == (signal == "SIGNONSENSE")


async def test_a_gone_task_is_stopped_and_destroyed(wire: Wire) -> None:
    await wire.driver("stop_task", driver_pb2.StopTaskRequest(task_id="gone"))
    await wire.driver("destroy_task", driver_pb2.DestroyTaskRequest(task_id="gone"))
    for name, request in (
        ("wait_task", driver_pb2.WaitTaskRequest(task_id="gone")),
        ("inspect_task", driver_pb2.InspectTaskRequest(task_id="gone")),
        ("signal_task", driver_pb2.SignalTaskRequest(task_id="gone", signal="SIGHUP")),
    ):
        assert (await refusal(wire.driver(name, request)))[0] is grpc.StatusCode.NOT_FOUND


async def test_events_are_streamed_with_their_time(wire: Wire) -> None:
    stream = aiter(wire.driver("task_events", driver_pb2.TaskEventsRequest()))
    await start(wire, "hold")
    event = await anext(stream)
    assert (event.task_id, event.alloc_id, event.task_name, event.message) == (
        ID,
        ID.split("/", maxsplit=1)[0],
        "web",
        "Downloading image hold",
    )
    assert event.timestamp.ToJsonString() == "2026-01-02T03:04:05.600Z"
    assert dict(event.annotations) == {"image": "hold"}


@pytest.mark.parametrize(
    ("image", "code", "recoverable"),
    [
        ("fail:spec", grpc.StatusCode.INVALID_ARGUMENT, False),
        ("fail:start", grpc.StatusCode.UNKNOWN, False),
        ("fail:pull", grpc.StatusCode.FAILED_PRECONDITION, True),
        ("fail:peer", grpc.StatusCode.FAILED_PRECONDITION, True),
        ("fail:long", grpc.StatusCode.UNKNOWN, False),
        ("bug", grpc.StatusCode.INTERNAL, False),
    ],
)
async def test_a_failed_start_is_one_line_and_says_whether_to_retry(
    wire: Wire, image: str, code: grpc.StatusCode, recoverable: bool
) -> None:
    found, text, retry = await refusal(wire.driver("start_task", driver_pb2.StartTaskRequest(task=task(image))))
    assert (found, retry) == (code, recoverable)
    assert "\n" not in text
    assert "Traceback" not in text
    assert "secret" not in text
    assert len(text) < 2100


async def test_statistics_that_are_not_there_stop_the_client_asking(wire: Wire) -> None:
    await start(wire, "no-stats")
    stream = aiter(wire.driver("task_stats", driver_pb2.TaskStatsRequest(task_id=ID)))
    assert await refusal(anext(stream)) == (grpc.StatusCode.UNIMPLEMENTED, "statistics are not available", False)


async def test_replies_have_what_the_agent_reads_unchecked(wire: Wire) -> None:
    """A missing one of these panics the agent."""
    await start(wire, "hold")
    inspected = await wire.driver("inspect_task", driver_pb2.InspectTaskRequest(task_id=ID))
    assert inspected.HasField("task")
    assert inspected.task.state == task_pb2.RUNNING
    assert not inspected.task.HasField("completed_at")
    executed = await wire.driver("exec_task", driver_pb2.ExecTaskRequest(task_id=ID, command=["true"]))
    assert executed.HasField("result")
    await wire.driver("stop_task", driver_pb2.StopTaskRequest(task_id=ID))
    inspected = await wire.driver("inspect_task", driver_pb2.InspectTaskRequest(task_id=ID))
    assert (inspected.task.state, inspected.task.result.exit_code) == (task_pb2.EXITED, 143)
    assert inspected.task.completed_at.ToJsonString() == "2026-01-02T03:04:05.600Z"


async def test_a_task_with_an_address_of_its_own_tells_it_with_its_ports(wire: Wire) -> None:
    config = task("hold")
    assert not (await wire.driver("start_task", driver_pb2.StartTaskRequest(task=config))).HasField("network_override")
    config.id = f"{ID}0"
    config.msgpack_driver_config = msgpack.packb({"image": "hold", "address": "10.88.1.2"})
    for label, to in (("http", 80), ("same", 0), ("also", -1)):
        config.resources.ports.add(label=label, value=20080, to=to, host_ip="192.0.2.1")
    reply = await wire.driver("start_task", driver_pb2.StartTaskRequest(task=config))
    told = reply.network_override
    assert (told.addr, dict(told.port_map), told.auto_advertise) == ("10.88.1.2", {"http": 80, "same": 20080, "also": 20080}, False)
    assert wire.under.requests[-1].ports[0] == GroupPort("http", 20080, 80, "192.0.2.1")


async def test_a_client_that_goes_leaves_the_task_alone(wire: Wire) -> None:
    await start(wire, "hold")
    call = wire.driver("wait_task", driver_pb2.WaitTaskRequest(task_id=ID))
    await asyncio.sleep(0)
    call.cancel()
    inspected = await wire.driver("inspect_task", driver_pb2.InspectTaskRequest(task_id=ID))
    assert inspected.task.state == task_pb2.RUNNING


async def test_hundreds_of_open_calls_do_not_block_the_next(wire: Wire) -> None:
    for number in range(100):
        await start(wire, "hold", f"a/t/{number}")
    waiting = [asyncio.create_task(wait(wire, f"a/t/{number}")) for number in range(100) for _ in range(3)]
    await start(wire, "exit:0", "a/t/last")
    assert (await wait(wire, "a/t/last")).result.exit_code == 0
    for number in range(100):
        await wire.driver("stop_task", driver_pb2.StopTaskRequest(task_id=f"a/t/{number}"))
    assert {reply.result.signal for reply in await asyncio.gather(*waiting)} == {15}
