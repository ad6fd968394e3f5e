"""What an engine sends as a stream of bytes, piece by piece: output in Docker's frames, and documents one a line."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Final

from zlayer_driver.backends.engine_api import Doc
from zlayer_driver.errors import EngineError
from zlayer_driver.readings import Channel

_FRAME_HEAD: Final = 8
_FRAME_LIMIT_BYTES: Final = 16 << 20
_CHANNELS: Final = {0: Channel.STDOUT, 1: Channel.STDOUT, 2: Channel.STDERR}


async def frames(pieces: AsyncIterator[bytes]) -> AsyncIterator[tuple[Channel, bytes]]:
    """Output with its channel, of a stream in Docker's frames: channel, three zeros, length in big-endian order, and the bytes."""
    held = bytearray()
    async for piece in pieces:
        held += piece
        at = 0
        while len(held) - at >= _FRAME_HEAD:
            size = int.from_bytes(held[at + 4 : at + _FRAME_HEAD], "big")
            if held[at] not in _CHANNELS or size > _FRAME_LIMIT_BYTES:
                raise EngineError("output stream", "it has a frame that is none", hint="does the container have a terminal of its own?")
            if len(held) - at < _FRAME_HEAD + size:
                break
            yield _CHANNELS[held[at]], bytes(held[at + _FRAME_HEAD : at + _FRAME_HEAD + size])
            at += _FRAME_HEAD + size
        del held[:at]


async def documents(pieces: AsyncIterator[bytes]) -> AsyncIterator[Doc]:
    """The documents of a stream of JSON, one a line."""
    held = b""
    async for piece in pieces:
        *whole, held = (held + piece).split(b"\n")
        for line in filter(None, map(bytes.strip, whole)):
            yield _document(line)
    if held.strip():
        yield _document(held)


def _document(line: bytes) -> Doc:
    try:
        doc = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EngineError("stream of events", "a line of it is no JSON") from error
    return doc if isinstance(doc, dict) else {}
