"""Attach kind ``host_proxy``: for a process without a network namespace of its own, the node listens on its overlay address and forwards.

Bytes are forwarded as they come: a slow side slows the other down, an end of one direction leaves the other open, and what is
idle for too long is closed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable, Sequence
from functools import partial

from zlayer_driver.overlay.host_netns import Attachment
from zlayer_driver.overlay.overlay import Core, Overlay
from zlayer_driver.overlay.plan import Address
from zlayer_driver.readings import PortMapping

_log = logging.getLogger(__name__)
_CHUNK = 1 << 16
_BACKLOG = 128
_MOST_FLOWS = 1024  # UDP clients of one port at a time; a further one is not served until one is idle
_LOCAL = "127.0.0.1"


class HostProxy:
    """The proxies of one node. ``idle_s`` ends a TCP connection or a UDP flow on which nothing passes for so long."""

    def __init__(self, overlay: Overlay, *, idle_s: float = 300.0) -> None:
        self._overlay = overlay
        self._idle_s = idle_s
        self._open: dict[str, list[_Tcp | _Udp]] = {}

    async def attach(self, owner: str, ports: Sequence[PortMapping]) -> Attachment:
        """Listens on each ``container_port`` of an overlay address and forwards to ``host_port`` on loopback. Again, it replaces the ports.

        On failure nothing is left.
        """
        await self._close(owner)
        attached = await self._overlay.lease(owner)
        opened = self._open[owner] = list[_Tcp | _Udp]()
        try:
            await self._overlay.call(_answer_for, attached.addresses)
            for port in ports:
                for address in attached.addresses:
                    listener = await self._overlay.call(_listener, address, port)
                    opened.append(await self._serve(listener, port))
        except BaseException:
            await self.detach(owner)
            raise
        return attached

    async def _serve(self, listener: socket.socket, port: PortMapping) -> _Tcp | _Udp:
        target = (port.host_address or _LOCAL, port.host_port)
        try:
            if port.protocol == "udp":
                return await _Udp.start(listener, target, self._idle_s)
            return await _Tcp.start(listener, target, self._idle_s)
        except BaseException:
            listener.close()
            raise

    async def detach(self, owner: str) -> None:
        """Stops listening and forwarding, and frees the address. Idempotent."""
        await self._close(owner)
        if attached := await self._overlay.describe(owner):
            await self._overlay.call(_answer_no_more, attached.addresses)
        await self._overlay.detach(owner)

    async def describe(self, owner: str) -> Attachment | None:
        return await self._overlay.describe(owner)

    async def close(self) -> None:
        """Stops all forwarding; leases stay."""
        for owner in tuple(self._open):
            await self._close(owner)

    async def _close(self, owner: str) -> None:
        for proxy in self._open.pop(owner, ()):
            await proxy.close()


def _answer_for(core: Core, addresses: Sequence[Address]) -> None:
    core.fabric.host_addresses(addresses, present=True)


def _answer_no_more(core: Core, addresses: Sequence[Address]) -> None:
    core.fabric.host_addresses(addresses, present=False)


def _listener(_: Core, address: Address, port: PortMapping) -> socket.socket:
    """A listening socket in the node's namespace."""
    kind = socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM
    listener = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind((str(address), port.container_port))
        if kind == socket.SOCK_STREAM:
            listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, f"listen on {address} port {port.container_port}") from error
    return listener


class _Tcp:
    """A listener and the connections that came through it."""

    def __init__(self, target: tuple[str, int], idle_s: float) -> None:
        self._target = target
        self._idle_s = idle_s
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @classmethod
    async def start(cls, listener: socket.socket, target: tuple[str, int], idle_s: float) -> _Tcp:
        made = cls(target, idle_s)
        made._server = await asyncio.start_server(made._accept, sock=listener)
        return made

    async def close(self) -> None:
        if self._server:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.ensure_future(self._forward(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            writers.append(far_writer)
            await self._both_ways((reader, far_writer), (far_reader, writer))
        except OSError as error:  # also of being idle: TimeoutError is one
            _log.debug("a forwarded connection to %s ended: %s", self._target, error)
            for each in writers:
                _reset(each)
        finally:
            for each in writers:
                each.close()
            await asyncio.gather(*(each.wait_closed() for each in writers), return_exceptions=True)

    async def _both_ways(self, *ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._idle_s) as limit:
            pumps = [asyncio.ensure_future(_pump(*way, lambda: limit.reschedule(loop.time() + self._idle_s))) for way in ways]
            try:
                await asyncio.gather(*pumps)
            finally:
                for pump in pumps:
                    pump.cancel()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection as one that failed: the other side gets no end of data that it could take for a whole answer."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passing: Callable[[], None]) -> None:
    """One direction, to its end, which is passed on; `drain` waits while the other side does not take what it is sent."""
    while data := await reader.read(_CHUNK):
        passing()
        writer.write(data)
        await writer.drain()
    writer.write_eof()


class _Udp(asyncio.DatagramProtocol):
    """A bound socket, and one connected socket per client, whose answers go back to it."""

    def __init__(self, target: tuple[str, int], idle_s: float) -> None:
        self._target = target
        self._idle_s = idle_s
        self._flows: dict[tuple[str, int], _Flow] = {}
        self._starting: set[asyncio.Task[None]] = set()
        self.transport: asyncio.DatagramTransport | None = None

    @classmethod
    async def start(cls, listener: socket.socket, target: tuple[str, int], idle_s: float) -> _Udp:
        made = cls(target, idle_s)
        made.transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: made, sock=listener)
        return made

    async def close(self) -> None:
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        for flow in tuple(self._flows.values()):
            flow.close()
        if self.transport:
            self.transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if flow := self._flows.get(addr):
            flow.send(data)
        elif len(self._flows) < _MOST_FLOWS and self.transport:
            flow = self._flows[addr] = _Flow(partial(self.transport.sendto, addr=addr), partial(self._forget, addr), self._idle_s)
            flow.send(data)
            task = asyncio.ensure_future(self._connect(flow))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _connect(self, flow: _Flow) -> None:
        try:
            await asyncio.get_running_loop().create_datagram_endpoint(lambda: flow, remote_addr=self._target)
        except OSError as error:
            _log.debug("no way to %s: %s", self._target, error)
            flow.close()

    def _forget(self, addr: tuple[str, int]) -> None:
        self._flows.pop(addr, None)


class _Flow(asyncio.DatagramProtocol):
    """The target's side of one client. What comes before the socket is there waits, one datagram at most: UDP promises none."""

    def __init__(self, answer: Callable[[bytes], None], ended: Callable[[], None], idle_s: float) -> None:
        self._answer = answer
        self._ended = ended
        self._idle_s = idle_s
        self._first = b""
        self._transport: asyncio.DatagramTransport | None = None
        self._timer = asyncio.get_running_loop().call_later(idle_s, self.close)

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]  # a datagram endpoint gives no other
        self._transport = transport
        transport.sendto(self._first)

    def send(self, data: bytes) -> None:
        self._touch()
        if self._transport:
            self._transport.sendto(data)
        else:
            self._first = data

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        del addr  # the socket is connected: only the target can have sent it
        self._touch()
        self._answer(data)

    def _touch(self) -> None:
        self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._idle_s, self.close)

    def close(self) -> None:
        self._timer.cancel()
        if self._transport:
            self._transport.close()
        self._ended()
