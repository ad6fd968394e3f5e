"""The messages of an exec session, as the input and output of a command.

The first message of the client is the setup. After it come input, its end, window sizes, and every ten seconds a message with nothing
in it, which keeps the connection alive. Messages with nothing in them go the other way, too: see `beating`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from zlayer_driver.errors import InvalidSpec
from zlayer_driver.readings import Channel, ExecEvent, ExecInput, WindowSize
from zlayer_driver.wire._gen import driver_pb2 as pb
from zlayer_driver.wire._gen import task_pb2 as task

_CLOSE = pb.ExecTaskStreamingIOOperation(close=True)
_BEAT = pb.ExecTaskStreamingResponse()
_BEAT_S = 3.0


async def setup(requests: AsyncIterator[pb.ExecTaskStreamingRequest]) -> pb.ExecTaskStreamingRequest.Setup:
    async for request in requests:
        if request.setup.command:
            return request.setup
        break
    raise InvalidSpec("exec has no command", hint="the first message must be a setup with at least one argument")


def _side(cells: int) -> int:
    """As much as a terminal can be told: TIOCSWINSZ of ioctl_tty(2) takes 16 bits."""
    return min(max(cells, 0), 0xFFFF)


async def stdin(requests: AsyncIterator[pb.ExecTaskStreamingRequest]) -> AsyncIterator[ExecInput]:
    """Ends where the client closes the command's input; messages after that are not read."""
    async for request in requests:
        if request.HasField("tty_size"):
            yield WindowSize(rows=_side(request.tty_size.height), columns=_side(request.tty_size.width))
        if request.stdin.data:
            yield request.stdin.data
        if request.stdin.close:
            return


async def replies(events: AsyncIterator[ExecEvent], *, tty: bool) -> AsyncGenerator[pb.ExecTaskStreamingResponse, None]:
    """Output, the end of each stream of it, and last the exit. A terminal has one stream only."""
    async for event in events:
        operation = pb.ExecTaskStreamingIOOperation(data=event.data)
        if event.exit_code is not None:
            yield pb.ExecTaskStreamingResponse(stdout=_CLOSE)
            if not tty:
                yield pb.ExecTaskStreamingResponse(stderr=_CLOSE)
            yield pb.ExecTaskStreamingResponse(exited=True, result=task.ExitResult(exit_code=event.exit_code))
        elif event.channel is Channel.STDERR and not tty:
            yield pb.ExecTaskStreamingResponse(stderr=operation)
        else:
            yield pb.ExecTaskStreamingResponse(stdout=operation)


async def beating(
    replies: AsyncGenerator[pb.ExecTaskStreamingResponse, None], every_s: float = _BEAT_S
) -> AsyncIterator[pb.ExecTaskStreamingResponse]:
    """The replies, and whenever none has come for so long, a message with nothing in it, which clients skip.

    An agent does not tell that its client has gone: it notices once it has something for the client, and ends the call then.
    """
    coming = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(replies, None))
            done, _ = await asyncio.wait([coming], timeout=every_s)
            if not done:
                yield _BEAT
            elif (reply := coming.result()) is None:
                return
            else:
                coming = None
                yield reply
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await replies.aclose()
