"""A go-plugin server: the handshake, the services that every plugin has, and the life of the process between them.

Nothing heavy is imported before the handshake line: Nomad launches the file three times at each start of an agent. The host takes the
plugin for dead only when both of its output pipes are closed everywhere, so no child may ever inherit them: `claim_stdio` moves
them away from where children would find them.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from zlayer_driver.errors import ConfigError, DriverError
from zlayer_driver.wire import hclog, rpc, socket
from zlayer_driver.wire._gen import health_pb2, plugin_pb2

if TYPE_CHECKING:
    from zlayer_driver.wire.verbs import DriverVerbs

COOKIE_NAME = "NOMAD_PLUGIN_MAGIC_COOKIE"
COOKIE_VALUE = "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255"
CORE_VERSION = 1
APP_VERSION = 2

# The host kills what is still there two seconds after it asked the plugin to exit. Ours end in this order, well before.
_CALLS_END_S = 0.1
_DRIVER_END_S = 1.2
_LAST_RESORT_S = 1.7

_NOTHING: tuple[Any, ...] = ()
_log = logging.getLogger(__name__)


class GoPlugin:
    """The services ``GRPCBroker``, ``GRPCStdio``, ``GRPCController`` and ``Health``.

    Brokered connections and captured output do not occur with task drivers, but the host opens both streams and warns when they
    end early.
    """

    def __init__(self) -> None:
        self.asked_to_exit = asyncio.Event()

    async def _silence(self) -> AsyncIterator[Any]:
        await self.asked_to_exit.wait()
        for nothing in _NOTHING:
            yield nothing

    def start_stream(self, _: AsyncIterator[plugin_pb2.ConnInfo]) -> AsyncIterator[plugin_pb2.ConnInfo]:
        return self._silence()

    def stream_stdio(self, _: Any) -> AsyncIterator[plugin_pb2.StdioData]:
        return self._silence()

    async def shutdown(self, _: plugin_pb2.Empty) -> plugin_pb2.Empty:
        self.asked_to_exit.set()
        return plugin_pb2.Empty()

    async def check(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        known = request.service in {"", "plugin"}
        return health_pb2.HealthCheckResponse(
            status=health_pb2.HealthCheckResponse.SERVING if known else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        )

    async def watch(self, request: health_pb2.HealthCheckRequest) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        yield await self.check(request)
        await self.asked_to_exit.wait()


async def serve(factory: Callable[[], DriverVerbs], announce: Callable[[str], None]) -> None:
    """Serves the driver until the host asks for the end or SIGTERM comes; then the process ends too.

    ``announce`` gets the handshake line once calls can arrive; only then is the driver made, in the time that the host needs to dial.
    """
    plugin = GoPlugin()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, plugin.asked_to_exit.set)
    services = rpc.Services()
    for name in ("GRPCBroker", "GRPCController", "GRPCStdio"):
        services.add(plugin_pb2.DESCRIPTOR.services_by_name[name], plugin)
    services.add(health_pb2.DESCRIPTOR.services_by_name["Health"], plugin)
    server = rpc.server(services)
    path = socket.choose(os.environ)
    try:
        _bind(server, path)
        socket.share(path, os.environ)
        await server.start()
        announce(f"{CORE_VERSION}|{APP_VERSION}|unix|{path}|grpc|\n")
        driver = factory()
        add_driver(services, driver)
        await plugin.asked_to_exit.wait()
        await _end(server, services, driver)
    finally:
        path.unlink(missing_ok=True)


def _bind(server: grpc.aio.Server, path: Path) -> None:
    try:
        with socket.private():
            server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise ConfigError(f"cannot listen at {str(path)!r}", hint="set TMPDIR to a directory that this user may write to") from error


def add_driver(services: rpc.Services, driver: DriverVerbs) -> None:
    from zlayer_driver.wire import base, servicer  # noqa: PLC0415  # they bring pydantic, half of what a start may cost
    from zlayer_driver.wire._gen import base_pb2, driver_pb2  # noqa: PLC0415  # as above

    service = servicer.DriverService(driver)
    services.add(base_pb2.DESCRIPTOR.services_by_name["BasePlugin"], base.BasePlugin(driver, service.know_cores))
    services.add(driver_pb2.DESCRIPTOR.services_by_name["Driver"], service)


async def _end(server: grpc.aio.Server, services: rpc.Services, driver: DriverVerbs) -> None:
    """Open calls are cut, not answered: an answer to WaitTask would be taken for the task's exit, and the task runs on.

    A thread that is stuck in a system call would hold the process for ever; the kernel's timer ends it all the same.
    """
    signal.setitimer(signal.ITIMER_REAL, _LAST_RESORT_S)
    await server.stop(_CALLS_END_S)
    try:
        async with asyncio.timeout(_DRIVER_END_S):
            await services.unwound()
            await driver.shutdown()
    except TimeoutError:
        _log.warning("the driver did not end in time; its tasks run on", extra={"timeout_s": _DRIVER_END_S})


def claim_stdio() -> tuple[int, int]:
    """Private, non-inheritable copies of stdout and stderr; descriptors 0, 1 and 2 become the null device, for children too.

    Python's own last words (a traceback of a thread, a fatal signal) still reach the log.
    """
    out, err = os.dup(1), os.dup(2)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    sys.stderr = os.fdopen(err, "w", buffering=1, closefd=False, errors="backslashreplace")
    faulthandler.enable(err)
    return out, err


def main(factory: Callable[[], DriverVerbs]) -> int:
    """The plugin's process, from its first moment to its exit status.

    SIGINT, and whatever the agent's own parent had ignored, get a handler that does nothing rather than SIG_IGN, which children would
    inherit; Python has SIGPIPE ignored already, and gives it back to them.
    """
    for number in signal.valid_signals() - {signal.SIGPIPE}:
        if number == signal.SIGINT or signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    out, err = claim_stdio()
    logging.basicConfig(handlers=[hclog.Handler(err)], level=logging.WARNING)
    logging.getLogger("zlayer_driver").setLevel(logging.DEBUG)

    def announce(line: str) -> None:
        os.write(out, line.encode())

    try:
        asyncio.run(serve(factory, announce))
    except DriverError as error:
        _log.error("the plugin cannot start", extra={"error": str(error)})
        return 1
    return 0
