"""A plugin's services in this process, on a real unix socket, and the raw calls of a client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.doubles.scripted_driver import ScriptedDriver
from zlayer_driver.wire import goplugin, rpc
from zlayer_driver.wire._gen import base_pb2, driver_pb2

if TYPE_CHECKING:
    from grpc.aio import Channel


@dataclass(frozen=True)
class Wire:
    under: ScriptedDriver
    base: rpc.Client
    driver: rpc.Client
    channel: Channel


@pytest.fixture
async def wire(socket_dir: Path) -> AsyncIterator[Wire]:
    services = rpc.Services()
    under = ScriptedDriver()
    goplugin.add_driver(services, under)
    server = rpc.server(services)
    server.add_insecure_port(f"unix:{socket_dir}/s")
    await server.start()
    async with rpc.channel(f"{socket_dir}/s") as channel:
        base = rpc.Client(channel, base_pb2.DESCRIPTOR.services_by_name["BasePlugin"])
        driver = rpc.Client(channel, driver_pb2.DESCRIPTOR.services_by_name["Driver"])
        yield Wire(under, base, driver, channel)
    await server.stop(None)
