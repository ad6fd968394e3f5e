"""Processes without a namespace, reached at an overlay address: half-close, back-pressure, idle limits, UDP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.host.overlay_lab import Host, lab, run
from zlayer_driver.errors import NetworkError
from zlayer_driver.host import netns
from zlayer_driver.overlay.proxy import HostProxy
from zlayer_driver.readings import PortMapping

pytestmark = pytest.mark.needs("root", "ip", "nsenter", "busybox")

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Place:
    """A node with a proxy, and a container on it from which the proxy is used."""

    host: Host
    proxy: HostProxy
    container: Path

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket of the container."""
        with netns.opened(str(self.container)) as there, netns.visit(there):
            made = socket.socket(family, kind)
        made.setblocking(False)
        return made

    async def connect(self, address: object, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        made = self.socket(socket.AF_INET6 if ":" in str(address) else socket.AF_INET)
        await asyncio.get_running_loop().sock_connect(made, (str(address), port))
        return await asyncio.open_connection(sock=made)


@pytest.fixture
async def place(tmp_path: Path, no_fd_leak: object) -> AsyncIterator[Place]:
    async with lab(tmp_path) as made:
        host = made.host(1)
        overlay, container = host.overlay(), host.container("client")
        await overlay.attach("client", str(container))
        proxy = HostProxy(overlay, idle_s=30.0)
        yield Place(host, proxy, container)
        await proxy.close()


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[int]:
    """The port of a server on loopback."""
    running: set[asyncio.Task[None]] = set()

    async def run_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        running.add(task)
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    listening = await asyncio.start_server(run_one, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the number of bytes, once the other side has sent all of them."""
    data = await reader.read()
    writer.write(b"%d" % len(data))


async def test_tcp_with_half_close_in_both_families(place: Place) -> None:
    async with server(count) as port:
        attached = await place.proxy.attach("app", [PortMapping(80, port)])
        for address in attached.addresses:
            reader, writer = await place.connect(address, 80)
            writer.write(bytes(1 << 20))
            writer.write_eof()
            assert await reader.read() == b"%d" % (1 << 20)
            writer.close()


async def test_a_side_that_does_not_read_holds_the_other_up(place: Place) -> None:
    async def never_reads(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # there is no public way to leave bytes in the kernel
        await asyncio.Event().wait()

    async with server(never_reads) as port:
        attached = await place.proxy.attach("app", [PortMapping(80, port)])
        _, writer = await place.connect(attached.addresses[0], 80)
        writer.write(bytes(64 << 20))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await writer.drain()
        writer.transport.abort()


async def test_what_is_idle_is_closed(place: Place) -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    hasty = HostProxy(place.proxy._overlay, idle_s=0.2)
    async with server(silent) as port:
        attached = await hasty.attach("app", [PortMapping(80, port)])
        reader, writer = await place.connect(attached.addresses[0], 80)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
    await hasty.close()


async def test_a_target_that_does_not_listen_is_a_reset(place: Place) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    attached = await place.proxy.attach("app", [PortMapping(80, port)])
    reader, writer = await place.connect(attached.addresses[0], 80)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_udp_answers_go_to_who_asked(place: Place) -> None:
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]  # a datagram endpoint gives no other
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(data.upper(), addr)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    attached = await place.proxy.attach("app", [PortMapping(53, port, protocol="udp")])
    for address, family in zip(attached.addresses, (socket.AF_INET, socket.AF_INET6), strict=True):
        with closing(place.socket(family, socket.SOCK_DGRAM)) as one, closing(place.socket(family, socket.SOCK_DGRAM)) as two:
            for client, word in ((one, b"one"), (two, b"two"), (one, b"again")):
                await loop.sock_sendto(client, word, (str(address), 53))
                assert await loop.sock_recv(client, 100) == word.upper()
    transport.close()


async def test_detach_frees_address_and_port(place: Place) -> None:
    async with server(count) as port:
        attached = await place.proxy.attach("app", [PortMapping(80, port)])
        assert await place.proxy.attach("app", [PortMapping(81, port)]) == attached
        await place.proxy.detach("app")
        await place.proxy.detach("app")
    assert await place.proxy.describe("app") is None
    assert f"{attached.addresses[0]}/32" not in run(["ip", "addr"], namespace=place.host.namespace)


async def test_a_failed_attach_leaves_nothing(place: Place) -> None:
    with pytest.raises(NetworkError, match="listen on"):
        await place.proxy.attach("app", [PortMapping(80, 1), PortMapping(80, 2)])
    assert await place.proxy.describe("app") is None
