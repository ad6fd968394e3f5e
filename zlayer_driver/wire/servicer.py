"""The ``Driver`` service: each RPC turns its message into values, asks the driver, and turns the answer back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator

from zlayer_driver.config import TaskConfig
from zlayer_driver.errors import InvalidSpec, NotFound
from zlayer_driver.host import signals
from zlayer_driver.wire import codec, hclspec, replies, socket, stats, streams
from zlayer_driver.wire._gen import driver_pb2 as pb
from zlayer_driver.wire._gen import task_pb2 as task
from zlayer_driver.wire.verbs import DriverVerbs

_log = logging.getLogger(__name__)
_SHORTEST_INTERVAL_S = 0.1
_Isolation = task.NetworkIsolationSpec.NetworkIsolationMode


class DriverService:
    def __init__(self, driver: DriverVerbs) -> None:
        self._driver = driver
        self._core_mhz = 0.0

    def know_cores(self, core_mhz: float) -> None:
        """What Nomad counts one core of this node as."""
        self._core_mhz = core_mhz

    async def init(self, _: pb.InitRequest) -> pb.InitResponse:
        socket.sweep(socket.home(os.environ))
        await self._driver.init()
        return pb.InitResponse()

    async def task_config_schema(self, _: pb.TaskConfigSchemaRequest) -> pb.TaskConfigSchemaResponse:
        return pb.TaskConfigSchemaResponse(spec=hclspec.of(TaskConfig))

    async def capabilities(self, _: pb.CapabilitiesRequest) -> pb.CapabilitiesResponse:
        return pb.CapabilitiesResponse(
            capabilities=pb.DriverCapabilities(
                send_signals=True,
                exec=True,
                fs_isolation=pb.DriverCapabilities.IMAGE,
                network_isolation_modes=[_Isolation.HOST, _Isolation.GROUP, _Isolation.NONE],
                must_create_network=self._driver.makes_networks,
                mount_configs=pb.DriverCapabilities.ANY_MOUNTS,
            )
        )

    async def fingerprint(self, _: pb.FingerprintRequest) -> AsyncIterator[pb.FingerprintResponse]:
        async for fingerprint in self._driver.fingerprints():
            yield replies.fingerprint_message(fingerprint)

    async def start_task(self, request: pb.StartTaskRequest) -> pb.StartTaskResponse:
        task_request = codec.request_from(request.task)
        address = await self._driver.task_address(task_request)
        handle = await self._driver.start_task(task_request)
        return pb.StartTaskResponse(
            handle=replies.handle_message(handle, request.task), network_override=replies.override_message(address, task_request.ports)
        )

    async def recover_task(self, request: pb.RecoverTaskRequest) -> pb.RecoverTaskResponse:
        """The request's own ``task_id`` is never filled by Nomad; the handle has it."""
        handle, task_request = replies.handle_from(request.handle), codec.request_from(request.handle.config)
        if handle.task_id != task_request.id:
            raise InvalidSpec(f"the handle of task {handle.task_id!r} came with the config of {task_request.id!r}")
        await self._driver.recover_task(handle, task_request)
        return pb.RecoverTaskResponse()

    async def wait_task(self, request: pb.WaitTaskRequest) -> pb.WaitTaskResponse:
        ended = await self._driver.wait_task(request.task_id)
        return pb.WaitTaskResponse(result=replies.exit_message(ended), err=ended.error)

    async def stop_task(self, request: pb.StopTaskRequest) -> pb.StopTaskResponse:
        """A task that is not there is stopped, and a signal that is none is SIGTERM: an error would make the client retry for minutes."""
        with contextlib.suppress(NotFound):
            await self._driver.stop_task(request.task_id, timeout_s=codec.seconds(request.timeout), signal=_known(request.signal))
        return pb.StopTaskResponse()

    async def destroy_task(self, request: pb.DestroyTaskRequest) -> pb.DestroyTaskResponse:
        """Running or not: Nomad never asks without ``force``."""
        with contextlib.suppress(NotFound):
            await self._driver.destroy_task(request.task_id)
        return pb.DestroyTaskResponse()

    async def inspect_task(self, request: pb.InspectTaskRequest) -> pb.InspectTaskResponse:
        return replies.status_message(await self._driver.inspect_task(request.task_id))

    async def signal_task(self, request: pb.SignalTaskRequest) -> pb.SignalTaskResponse:
        await self._driver.signal_task(request.task_id, request.signal)
        return pb.SignalTaskResponse()

    async def exec_task(self, request: pb.ExecTaskRequest) -> pb.ExecTaskResponse:
        if not request.command:
            raise InvalidSpec("exec has no command", hint="give at least one argument")
        result = await self._driver.exec_task(request.task_id, tuple(request.command), timeout_s=codec.seconds(request.timeout))
        return pb.ExecTaskResponse(stdout=result.stdout, stderr=result.stderr, result=replies.exit_message(result.exit))

    async def task_events(self, _: pb.TaskEventsRequest) -> AsyncIterator[task.DriverTaskEvent]:
        async for event in self._driver.events():
            yield replies.event_message(event)

    async def task_stats(self, request: pb.TaskStatsRequest) -> AsyncIterator[pb.TaskStatsResponse]:
        """A sample at once, then one each interval, until the client has enough: it ends the call with the task."""
        interval_s = max(codec.seconds(request.collection_interval), _SHORTEST_INTERVAL_S)
        meter = stats.Meter(self._core_mhz, interval_s)
        while True:
            async for sample in await self._driver.stats(request.task_id):
                if meter.due(sample):
                    yield pb.TaskStatsResponse(stats=meter.message(sample))
            await asyncio.sleep(interval_s)

    async def exec_task_streaming(
        self, requests: AsyncIterator[pb.ExecTaskStreamingRequest]
    ) -> AsyncIterator[pb.ExecTaskStreamingResponse]:
        """The command ends with its output, or is killed when the call is cancelled: soon after its client has gone."""
        setup = await streams.setup(requests)
        events = await self._driver.stream_exec(setup.task_id, tuple(setup.command), tty=setup.tty, stdin=streams.stdin(requests))
        async for reply in streams.beating(streams.replies(events, tty=setup.tty)):
            yield reply

    async def create_network(self, request: pb.CreateNetworkRequest) -> pb.CreateNetworkResponse:
        made = await self._driver.create_network(request.alloc_id, request.hostname)
        return pb.CreateNetworkResponse(isolation_spec=codec.allocation_network(made), created=made.created)

    async def destroy_network(self, request: pb.DestroyNetworkRequest) -> pb.DestroyNetworkResponse:
        await self._driver.destroy_network(request.alloc_id)
        return pb.DestroyNetworkResponse()

    async def shutdown(self, _: pb.ShutdownRequest) -> pb.ShutdownResponse:
        """Only a notice: the host asks the process to exit right after, and that ends the driver."""
        return pb.ShutdownResponse()


def _known(signal: str) -> str:
    """An empty name leaves the choice to the image."""
    try:
        if signal:
            signals.number(signal)
    except InvalidSpec as error:
        _log.warning("kill_signal %s; the task gets SIGTERM", error)
        return "SIGTERM"
    return signal
