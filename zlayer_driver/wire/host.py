"""An embedded Nomad client: launches a plugin, speaks to it as Nomad does, and gives its answers as values of `zlayer_driver.model`.

::

    async with PluginHost.launch(["zlayer-driver"]) as host:
        await host.set_config({"state_dir": "/var/lib/zlayer"})
        await host.init()
        handle = await host.start_task(request)
        print(await host.wait_task(request.id))
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Self

import grpc
from google.protobuf.empty_pb2 import Empty

from zlayer_driver.errors import DriverError
from zlayer_driver.model import ExecResult, Exit, Fingerprint, Handle, NetworkSpec, TaskEvent, TaskRequest, TaskStatus
from zlayer_driver.wire import codec, cty, launch, replies, rpc, status
from zlayer_driver.wire._gen import base_pb2, driver_pb2, hclspec_pb2, plugin_pb2, task_pb2
from zlayer_driver.wire.base import API_VERSION

EXIT_TIMEOUT_S = 2.0


class PluginHost:
    """One connection to one plugin.

    ``exited`` waits for the end of its process. ``logs`` has its log lines, each as the object that it was sent as. Calls raise `DriverError`,
    recoverable if the plugin says so or is gone.
    """

    def __init__(self, address: str, pid: int, exited: Callable[[], Awaitable[object]], logs: list[dict[str, Any]]) -> None:
        self.address = address
        self.pid = pid
        self.exited = exited
        self.logs = logs
        self._task_schema: hclspec_pb2.Spec | None = None
        self._channel = rpc.channel(address)
        services = plugin_pb2.DESCRIPTOR.services_by_name
        self._controller = rpc.Client(self._channel, services["GRPCController"])
        self._broker = rpc.Client(self._channel, services["GRPCBroker"])
        self._stdio = rpc.Client(self._channel, services["GRPCStdio"])
        self._base = rpc.Client(self._channel, base_pb2.DESCRIPTOR.services_by_name["BasePlugin"])
        self._driver = rpc.Client(self._channel, driver_pb2.DESCRIPTOR.services_by_name["Driver"])

    @classmethod
    @contextlib.asynccontextmanager
    async def launch(cls, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> AsyncIterator[Self]:
        """A plugin of its own, started with ``env`` over this process's environment and stopped at the end."""
        async with launch.plugin(argv, env or {}) as started:
            host = cls(started.address, started.pid, started.exited, started.logs)
            async with host._connected():
                yield host

    @classmethod
    @contextlib.asynccontextmanager
    async def attach(cls, address: str, pid: int) -> AsyncIterator[Self]:
        """A plugin that outlived the host which launched it. Its log goes nowhere."""
        host = cls(address, pid, lambda: launch.gone(pid), [])
        async with host._connected():
            yield host

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        """go-plugin opens two streams on every connection and keeps them."""
        streams = [self._broker("start_stream", None), self._stdio("stream_stdio", Empty())]
        try:
            yield
            await self.stop()
        finally:
            for stream in streams:
                stream.cancel()
            await self._channel.close()

    async def stop(self) -> bool:
        """Asks the plugin to exit, and kills it where it takes longer than two seconds; whether it went by itself."""
        for client, request in ((self._driver, driver_pb2.ShutdownRequest()), (self._controller, plugin_pb2.Empty())):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await client("shutdown", request)
        try:
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                await self.exited()
        except TimeoutError:
            await self.kill()
            return False
        return True

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        await self.exited()

    async def plugin_info(self) -> tuple[str, str]:
        """Name and version."""
        info = await _answer(self._base("plugin_info", base_pb2.PluginInfoRequest()))
        if info.type != base_pb2.DRIVER or API_VERSION not in info.plugin_api_versions:
            raise DriverError(f"plugin {info.name!r} is no task driver of API {API_VERSION}")
        return info.name, info.plugin_version

    async def set_config(self, config: Mapping[str, Any], *, validate_only: bool = False) -> None:
        schema = await _answer(self._base("config_schema", base_pb2.ConfigSchemaRequest()))
        nomad = None if validate_only else base_pb2.NomadConfig(driver=base_pb2.NomadDriverConfig(ClientMinPort=14000, ClientMaxPort=14512))
        request = base_pb2.SetConfigRequest(
            msgpack_config=cty.pack(schema.spec, config), nomad_config=nomad, plugin_api_version=API_VERSION
        )
        await _answer(self._base("set_config", request))

    async def init(self) -> None:
        await _answer(self._driver("init", driver_pb2.InitRequest()))

    async def capabilities(self) -> driver_pb2.DriverCapabilities:
        reply = await _answer(self._driver("capabilities", driver_pb2.CapabilitiesRequest()))
        capabilities: driver_pb2.DriverCapabilities = reply.capabilities
        return capabilities

    async def fingerprints(self) -> AsyncIterator[Fingerprint]:
        async for message in _answers(self._driver("fingerprint", driver_pb2.FingerprintRequest())):
            yield replies.fingerprint_from(message)

    async def events(self) -> AsyncIterator[TaskEvent]:
        async for message in _answers(self._driver("task_events", driver_pb2.TaskEventsRequest())):
            yield replies.event_from(message)

    async def start_task(self, request: TaskRequest) -> Handle:
        reply = await _answer(self._driver("start_task", driver_pb2.StartTaskRequest(task=await self._config(request))))
        if reply.handle.config.id != request.id:
            raise DriverError(f"the handle of task {request.id!r} does not echo its config: no client could recover it")
        return replies.handle_from(reply.handle)

    async def recover_task(self, handle: Handle, request: TaskRequest, *, after_agent_restart: bool = False) -> None:
        """An agent that was restarted has everything of the request but the config block."""
        config = codec.config_for(request, b"") if after_agent_restart else await self._config(request)
        message = driver_pb2.RecoverTaskRequest(handle=replies.handle_message(handle, config))
        await _answer(self._driver("recover_task", message))

    async def wait_task(self, task_id: str) -> Exit:
        reply = await _answer(self._driver("wait_task", driver_pb2.WaitTaskRequest(task_id=task_id)))
        return replies.exit_from(reply.result, reply.err)

    async def stop_task(self, task_id: str, *, timeout_s: float = 5.0, signal: str = "") -> None:
        request = driver_pb2.StopTaskRequest(task_id=task_id, timeout=codec.duration(timeout_s), signal=signal)
        await _answer(self._driver("stop_task", request))

    async def destroy_task(self, task_id: str) -> None:
        await _answer(self._driver("destroy_task", driver_pb2.DestroyTaskRequest(task_id=task_id, force=True)))

    async def inspect_task(self, task_id: str) -> TaskStatus:
        return replies.status_from(await _answer(self._driver("inspect_task", driver_pb2.InspectTaskRequest(task_id=task_id))))

    async def signal_task(self, task_id: str, signal: str) -> None:
        await _answer(self._driver("signal_task", driver_pb2.SignalTaskRequest(task_id=task_id, signal=signal)))

    async def exec_task(self, task_id: str, argv: Sequence[str], *, timeout_s: float = 0.0) -> ExecResult:
        request = driver_pb2.ExecTaskRequest(task_id=task_id, command=argv, timeout=codec.duration(timeout_s))
        reply = await _answer(self._driver("exec_task", request))
        return ExecResult(replies.exit_from(reply.result), reply.stdout, reply.stderr)

    async def create_network(self, alloc_id: str, hostname: str = "") -> NetworkSpec:
        reply = await _answer(self._driver("create_network", driver_pb2.CreateNetworkRequest(alloc_id=alloc_id, hostname=hostname)))
        spec = reply.isolation_spec
        return NetworkSpec(spec.path, spec.hostsConfig.hostname, spec.hostsConfig.address, reply.created)

    async def destroy_network(self, alloc_id: str) -> None:
        await _answer(self._driver("destroy_network", driver_pb2.DestroyNetworkRequest(alloc_id=alloc_id)))

    async def _config(self, request: TaskRequest) -> task_pb2.TaskConfig:
        if self._task_schema is None:
            reply = await _answer(self._driver("task_config_schema", driver_pb2.TaskConfigSchemaRequest()))
            self._task_schema = reply.spec
        return codec.config_for(request, cty.pack(self._task_schema, request.config))


async def _answer(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise status.decode(error) from error


async def _answers(call: AsyncIterator[Any]) -> AsyncIterator[Any]:
    try:
        async for message in call:
            yield message
    except grpc.aio.AioRpcError as error:
        raise status.decode(error) from error
