"""Talking with the monitor of a running VM: one call, or a further command in the container with its streams."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.errors import InvalidSpec, NotFound, TimedOut
from zlayer_driver.guest.frames import CHUNK, CREDIT, EXIT, NUMBER, SIZE, WINDOW, Frame, Kind, Parser, pack
from zlayer_driver.model import ExecResult, Exit
from zlayer_driver.readings import Channel, ExecEvent, ExecInput, WindowSize

_CALL_TIMEOUT_S = 30.0
_KEPT_BYTES = 16 << 20
_STREAMS = {Kind.STDOUT: (0, Channel.STDOUT), Kind.STDERR: (1, Channel.STDERR)}
_END_OF_INPUT = b"\x04"  # what a terminal's line discipline takes for the end of a file
NOT_FOUND, NOT_EXECUTABLE = 127, 126


class Talk:
    """A connection to a monitor."""

    def __init__(self, bundle: Bundle, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._bundle = bundle
        self._reader = reader
        self._writer = writer
        self._parser = Parser()
        self._frames: list[Frame] = []
        self._room = WINDOW
        self._roomy = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(cls, bundle: Bundle) -> AsyncIterator[Self]:
        """By a path through /proc, as a socket's own path may be too long for its address; `NotFound` if nobody listens."""
        try:
            directory = os.open(bundle.dir, os.O_PATH | os.O_CLOEXEC)
            try:
                reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/agent.sock")
            finally:
                os.close(directory)
        except OSError as error:
            raise NotFound(bundle.id, "its VM has ended") from error
        try:
            yield cls(bundle, reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        self._writer.write(pack(kind, payload))

    async def frame(self) -> Frame:
        """The next; `NotFound` if the VM is gone."""
        while not self._frames:
            try:
                data = await self._reader.read(1 << 16)
            except ConnectionError:
                data = b""
            if not data:
                raise NotFound(self._bundle.id, "its VM ended")
            self._frames += self._parser.feed(data)
        return self._frames.pop(0)

    async def output(self) -> AsyncIterator[ExecEvent]:
        """Output as it comes, the exit last. What the consumer has taken the guest may send anew."""
        while (frame := await self.frame()).kind is not Kind.EXIT:
            if frame.kind is Kind.CREDIT:
                self._room += frame.unpack(NUMBER)[0]
                self._roomy.set()
            elif frame.kind in _STREAMS:
                stream, channel = _STREAMS[frame.kind]
                yield ExecEvent(channel, frame.payload)
                self.send(Kind.CREDIT, CREDIT.pack(stream, len(frame.payload)))
        yield ExecEvent(exit_code=frame.unpack(EXIT)[0])

    async def feed(self, stdin: AsyncIterator[ExecInput] | None, *, tty: bool) -> None:
        if stdin is not None:
            async for given in stdin:
                if isinstance(given, WindowSize):
                    self.send(Kind.RESIZE, SIZE.pack(given.rows, given.columns))
                else:
                    await self._write(given)
        if tty:
            await self._write(_END_OF_INPUT)
        else:
            self.send(Kind.INPUT)

    async def _write(self, data: bytes) -> None:
        while data:
            while not self._room:
                self._roomy.clear()
                await self._roomy.wait()
            piece = data[: min(self._room, CHUNK)]
            self._room -= len(piece)
            self.send(Kind.INPUT, piece)
            data = data[len(piece) :]


async def call(bundle: Bundle, kind: Kind, payload: bytes = b"") -> Frame:
    """The answer to one frame."""
    try:
        async with asyncio.timeout(_CALL_TIMEOUT_S), Talk.open(bundle) as talk:
            talk.send(kind, payload)
            return await talk.frame()
    except TimeoutError:
        raise TimedOut(f"an answer of the VM of container {bundle.id!r}", _CALL_TIMEOUT_S) from None


async def stream(bundle: Bundle, payload: bytes, stdin: AsyncIterator[ExecInput] | None, *, tty: bool) -> AsyncIterator[ExecEvent]:
    """Closing the iterator, or cancelling who waits for it, kills the command."""
    async with Talk.open(bundle) as talk:
        talk.send(Kind.START, payload)
        begun = await talk.frame()
        if begun.kind is Kind.FAILED:
            code, reason = _not_begun(bundle, begun)
            yield ExecEvent(Channel.STDERR, reason.encode())
            yield ExecEvent(exit_code=code)
            return
        feeding = asyncio.create_task(talk.feed(stdin, tty=tty))
        try:
            async for event in talk.output():
                yield event
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)  # input that fails is its giver's matter


def _not_begun(bundle: Bundle, frame: Frame) -> tuple[int, str]:
    """A shell's code for a command that cannot be run, and why."""
    number, what = frame.failure()
    reason = f"cannot {what}: {os.strerror(number)}"
    if what == "execute":
        return NOT_EXECUTABLE if number in (errno.EACCES, errno.ENOEXEC) else NOT_FOUND, f"{reason}\n"
    if what.startswith("/"):
        raise InvalidSpec(f"working directory {what!r}: {os.strerror(number)}")
    raise NotFound(bundle.id, f"no command can be executed in it: {reason}")


async def execute(bundle: Bundle, payload: bytes, *, name: str, timeout_s: float) -> ExecResult:
    """Output is kept up to 16 MiB a stream."""
    kept = {Channel.STDOUT: bytearray(), Channel.STDERR: bytearray()}
    code = 0
    events = stream(bundle, payload, None, tty=False)
    try:
        async with asyncio.timeout(timeout_s or None):
            async for event in events:
                held = kept[event.channel]
                held += event.data[: _KEPT_BYTES - len(held)]
                code = event.exit_code or 0
    except TimeoutError:
        raise TimedOut(f"command {name!r}", timeout_s) from None
    finally:
        await events.aclose()  # type: ignore[attr-defined]  # it is a generator
    return ExecResult(Exit(code), bytes(kept[Channel.STDOUT]), bytes(kept[Channel.STDERR]))
