"""A scripted HTTP/1.1 server on loopback, for answers that no honest registry gives: cut, stalled, endless, lying."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Handler = Callable[["Call"], Awaitable[None]]


@dataclass
class Call:
    """A request, and the connection to answer it on. Header names are lower-case."""

    path: str
    headers: Mapping[str, str]
    writer: asyncio.StreamWriter
    body: bytes = b""

    async def answer(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        """``length`` is what Content-Length says. Underscores in header names stand for hyphens. The connection is closed after it."""
        lines = [f"HTTP/1.1 {status} x", f"content-length: {len(body) if length is None else length}", "connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self.writer.drain()


@dataclass
class Web:
    host: str
    calls: list[Call] = field(default_factory=list)


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Web]:
    """Every connection carries one request. What a handler still does at the end is cancelled."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            call = Call(first.split(" ")[1], headers, writer, body)
            web.calls.append(call)
            await handler(call)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    web = Web(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield web
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
