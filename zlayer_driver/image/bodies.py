"""Bodies of a registry's answers, in pieces of a good size, with no wait without end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from zlayer_driver.image.values import MIB, Malformed

if TYPE_CHECKING:
    import httpcore2
    import httpx2

STALL_S = 30.0  # longest wait for a piece, which makes 17 kB/s the slowest download
_PIECE = MIB // 2
_READ = MIB // 4  # as much as asyncio takes from a socket at once
_LARGE = MIB  # bytes of a body that are worth a connection of their own


class Transient(Exception):
    """A failure that trying again may mend, after ``wait_s`` if the registry asked for that."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


async def pieces_from(answer: httpx2.Response, done: int) -> AsyncGenerator[bytes, None]:
    """The answer's bytes from ``done`` on, also where the server starts from the beginning though it was asked not to."""
    skip = done
    if answer.status_code == 206:
        if not answer.headers.get("content-range", "").startswith(f"bytes {done}-"):
            raise Malformed("the registry answers with another range than it was asked for")
        skip = 0
    async with aclosing(_chunks(answer)) as chunks:
        while True:
            chunk, trouble = await _gathered(chunks)
            piece, skip = chunk[skip:], max(0, skip - len(chunk))
            if piece:
                yield piece
            if trouble is not None:
                raise trouble
            if not chunk:
                return


async def _gathered(chunks: AsyncGenerator[bytes, None]) -> tuple[bytes, Transient | None]:
    """At least `_PIECE` bytes in one, so that threads are woken seldom; less only at the end, which may be one before its time."""
    parts: list[bytes] = []
    size = 0
    trouble = None
    try:
        async with asyncio.timeout(STALL_S):
            while size < _PIECE and (part := await anext(chunks, b"")):
                parts.append(part)
                size += len(part)
    except TimeoutError:
        trouble = Transient(f"no {_PIECE} bytes in {STALL_S:g} s")
    except Transient as error:
        trouble = error
    return b"".join(parts), trouble


async def _chunks(answer: httpx2.Response) -> AsyncGenerator[bytes, None]:
    """The body as it comes.

    A large one of known length is read from the connection itself once the HTTP library has given what came with the headers: the library
    copies each byte four times, which costs half as much as inflating it. The connection is closed after it. Were the library to keep bytes
    back, the blob's digest would tell.
    """
    import httpcore2  # noqa: PLC0415 # with `httpx2`, at the first pull
    import httpx2  # noqa: PLC0415 # as above

    try:
        async with aclosing(answer.aiter_raw()) as raw:
            first = await anext(raw, b"")
            yield first
            length = answer.headers.get("content-length", "")
            left = int(length) - len(first) if length.isdecimal() else 0
            async for chunk in _straight(answer.extensions["network_stream"], left) if left > _LARGE else raw:
                yield chunk
    except (httpx2.TransportError, httpcore2.NetworkError) as error:
        raise Transient(f"the connection to {answer.url.host} breaks off: {type(error).__name__} {error}".rstrip()) from error


async def _straight(connection: httpcore2.AsyncNetworkStream, left: int) -> AsyncGenerator[bytes, None]:
    while left and (chunk := await connection.read(min(left, _READ))):
        left -= len(chunk)
        yield chunk
