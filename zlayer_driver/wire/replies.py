"""What the driver answers, as Nomad's messages, and back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from zlayer_driver.errors import InvalidSpec
from zlayer_driver.model import Exit, Fingerprint, GroupPort, Handle, Health, TaskEvent, TaskState, TaskStatus
from zlayer_driver.wire._gen import driver_pb2 as driver
from zlayer_driver.wire._gen import structs_pb2 as structs
from zlayer_driver.wire._gen import task_pb2 as task

_HEALTH = {
    Health.UNDETECTED: driver.FingerprintResponse.UNDETECTED,
    Health.UNHEALTHY: driver.FingerprintResponse.UNHEALTHY,
    Health.HEALTHY: driver.FingerprintResponse.HEALTHY,
}
_STATES = {TaskState.STARTING: task.UNKNOWN, TaskState.RUNNING: task.RUNNING, TaskState.EXITED: task.EXITED}


def moment(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(UTC)


def timestamp(at: datetime) -> Timestamp:
    value = Timestamp()
    value.FromDatetime(at)
    return value


def handle_message(handle: Handle, config: task.TaskConfig) -> task.TaskHandle:
    """``config`` goes back whole: the client takes its id from there after a restart, and without it starts the task a second time."""
    return task.TaskHandle(version=Handle.VERSION, config=config, state=task.RUNNING, driver_state=handle.dumps())


def override_message(address: str, ports: Sequence[GroupPort]) -> task.NetworkOverride | None:
    """What a service with ``address_mode = "driver"`` is registered under; no other service is, since only the overlay reaches it."""
    if not address:
        return None
    return task.NetworkOverride(addr=address, port_map={port.label: port.container_port for port in ports})


def handle_from(message: task.TaskHandle) -> Handle:
    if message.version != Handle.VERSION:
        raise InvalidSpec(
            f"task handle has version {message.version}, and this driver reads {Handle.VERSION}", hint="stop and start the task again"
        )
    return Handle.loads(message.driver_state)


def exit_message(ended: Exit) -> task.ExitResult:
    return task.ExitResult(exit_code=ended.code, signal=ended.signal, oom_killed=ended.oom_killed)


def exit_from(message: task.ExitResult, error: str = "") -> Exit:
    return Exit(message.exit_code, message.signal, message.oom_killed, error)


def fingerprint_message(fingerprint: Fingerprint) -> driver.FingerprintResponse:
    return driver.FingerprintResponse(
        health=_HEALTH[fingerprint.health],
        health_description=fingerprint.description,
        attributes={key: _attribute(value) for key, value in fingerprint.attributes.items()},
    )


def _attribute(value: str | int | bool) -> structs.Attribute:
    match value:
        case bool():
            return structs.Attribute(bool_val=value)
        case int():
            return structs.Attribute(int_val=value)
        case _:
            return structs.Attribute(string_val=value)


def fingerprint_from(message: driver.FingerprintResponse) -> Fingerprint:
    healths = {number: health for health, number in _HEALTH.items()}
    attributes = {key: getattr(value, value.WhichOneof("value") or "string_val") for key, value in message.attributes.items()}
    return Fingerprint(healths[message.health], message.health_description, attributes)


def status_message(status: TaskStatus) -> driver.InspectTaskResponse:
    """Always with ``task`` in it: the agent reads it unchecked."""
    reply = driver.InspectTaskResponse(
        task=task.TaskStatus(id=status.id, name=status.name, state=_STATES[status.state], started_at=timestamp(status.started_at)),
        driver=task.TaskDriverStatus(attributes=status.attributes),
    )
    if status.completed_at is not None:
        reply.task.completed_at.CopyFrom(timestamp(status.completed_at))
    if status.exit is not None:
        reply.task.result.CopyFrom(exit_message(status.exit))
    return reply


def status_from(message: driver.InspectTaskResponse) -> TaskStatus:
    states = {number: state for state, number in _STATES.items()}
    status = message.task
    return TaskStatus(
        status.id,
        status.name,
        states[status.state],
        moment(status.started_at),
        moment(status.completed_at) if status.HasField("completed_at") else None,
        exit_from(status.result) if status.HasField("result") else None,
        dict(message.driver.attributes),
    )


def event_message(event: TaskEvent) -> task.DriverTaskEvent:
    return task.DriverTaskEvent(
        task_id=event.task_id,
        alloc_id=event.alloc_id,
        task_name=event.task_name,
        timestamp=timestamp(event.at),
        message=event.message,
        annotations=event.annotations,
    )


def event_from(message: task.DriverTaskEvent) -> TaskEvent:
    return TaskEvent(
        message.task_id, message.alloc_id, message.task_name, message.message, moment(message.timestamp), dict(message.annotations)
    )
