"""The end of `wsl2_wire` that calls: over the standard streams of a program that it starts, which has the backend."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

from zlayer_driver import __version__
from zlayer_driver.backends.wsl2_wire import PROGRESS, Message, Method, Signature, pack, raised, signature
from zlayer_driver.errors import InternalError, Unsupported
from zlayer_driver.host.commands import begin, finish
from zlayer_driver.model import Report

_HELLO_TIMEOUT_S: Final = 120.0  # a distro that has to boot first
_log = logging.getLogger(__name__)


class Disconnected(InternalError):
    """The agent is gone; what it was at may have happened or not."""

    recoverable = True


def text(raw: bytes) -> str:
    """What wsl.exe says, which is in UTF-16 where it does not heed ``WSL_UTF8``, in one line."""
    return " ".join(raw.decode("utf-16-le" if b"\0" in raw else "utf-8", "replace").replace("\ufeff", "").split())


class _Call:
    def __init__(self, number: int, send: Callable[[Message], None], inputs: AsyncIterator[Any] | None, report: Report | None) -> None:
        self._number = number
        self._send = send
        self._inputs = inputs
        self._report = report
        self._heard: asyncio.Queue[Message | None] = asyncio.Queue()
        self._feeding: asyncio.Task[None] | None = None

    def send(self, **message: Any) -> None:
        self._send({"id": self._number, **message})

    def hear(self, kind: Signature, message: Message | None) -> None:
        """``None`` is the end of the connection."""
        if message and "report" in message:
            if self._report:
                self._report(PROGRESS.value(message["report"]))
        elif message and "want" in message:
            self._feeding = asyncio.ensure_future(self._feed(kind))
        else:
            self._heard.put_nowait(message)

    async def _feed(self, kind: Signature) -> None:
        item = await anext(self._inputs, None) if self._inputs else None
        self.send(**({"end": True} if item is None else {"input": kind.input.plain(item)}))

    async def answer(self) -> Message:
        message = await self._heard.get()
        if message is None:
            raise Disconnected("the agent in the distro ended", hint="see its messages in the log, and try again")
        if "raises" in message:
            raise raised(message)
        return message

    async def close(self) -> None:
        if self._feeding:
            self._feeding.cancel()
            await asyncio.gather(self._feeding, return_exceptions=True)  # input that fails is its giver's matter


class Remote:
    """Starts the program when it is first needed, and anew after it has ended. ``config`` is what it is told first."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], config: Message) -> None:
        self._argv = argv
        self._env = env
        self._config = config
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._calls: dict[int, tuple[Signature, _Call]] = {}

    async def call(self, method: Method, *args: Any, **kwargs: Any) -> Any:
        """What the method of the contract returns there."""
        number, call, kind = await self._open(method, args, kwargs)
        try:
            return kind.gives.value((await call.answer())["gives"])
        finally:
            await self._end(number, call)

    async def stream(self, method: Method, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """The iterator that the method gives there."""
        async with AsyncExitStack() as undo:
            number, call, kind = await self._open(method, args, kwargs)
            undo.push_async_callback(self._end, number, call)
            await call.answer()
            undo.pop_all()
        return self._items(number, call, kind)

    async def _items(self, number: int, call: _Call, kind: Signature) -> AsyncIterator[Any]:
        try:
            call.send(next=True)
            while "item" in (message := await call.answer()):
                yield kind.gives.value(message["item"])
                call.send(next=True)
        finally:
            await self._end(number, call)

    async def _open(self, method: Method, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, _Call, Signature]:
        kind = signature(method.__name__)
        given = dict(inspect.signature(method).bind(None, *args, **kwargs).arguments)
        inputs, report = given.get(kind.inputs), given.get(kind.report)
        told = {key: kind.arguments[key].plain(value) for key, value in given.items() if key in kind.arguments}
        if inputs is not None:
            told[kind.inputs] = True
        async with self._starting:
            if self._process is None:
                await self._connect()
        number = next(self._numbers)
        call = _Call(number, self._send, inputs, report)
        self._calls[number] = kind, call
        call.send(call=method.__name__, **{"with": told})
        return number, call, kind

    async def _end(self, number: int, call: _Call) -> None:
        """Of a call that has its answer the other side knows no more; any other is to stop."""
        self._calls.pop(number, None)
        call.send(cancel=True)
        await call.close()

    def _send(self, message: Message) -> None:
        if self._process and self._process.stdin:
            self._process.stdin.write(pack(message))

    async def _connect(self) -> None:
        process = await begin(self._argv, env=self._env)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(finish, process)
            async with asyncio.timeout(_HELLO_TIMEOUT_S):
                line = await process.stdout.readline()  # type: ignore[union-attr]  # it is a pipe
            if (version := _version(line)) != __version__:
                told = f"the distro has zlayer-driver {version}" if version else f"{self._argv[0]} says {await _words(process, line)!r}"
                raise Unsupported(f"{told}, and this is zlayer-driver {__version__}", hint="install this version in the distro")
            undo.pop_all()
        self._process = process
        self._send({"config": self._config})
        self._reading = asyncio.create_task(self._read(process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        telling = asyncio.create_task(_tell(process))
        try:
            while line := await process.stdout.readline():  # type: ignore[union-attr]  # it is a pipe
                message = json.loads(line)
                if found := self._calls.get(message["id"]):
                    kind, call = found
                    call.hear(kind, message)
        finally:
            self._process = None
            for kind, call in self._calls.values():
                call.hear(kind, None)
            telling.cancel()
            await finish(process)

    async def close(self) -> None:
        """Ends the program, and with it every call."""
        if self._reading:
            self._reading.cancel()
            with suppress(asyncio.CancelledError):
                await self._reading
            self._reading = None


def _version(line: bytes) -> str | None:
    """Of a program that is ours."""
    with suppress(ValueError, TypeError, KeyError):
        return str(json.loads(line)["version"])
    return None


async def _words(process: asyncio.subprocess.Process, line: bytes) -> str:
    """What a program says that is not ours, or could not be run."""
    out, err = await process.communicate()
    return text(line + out) or text(err) or "nothing"


async def _tell(process: asyncio.subprocess.Process) -> None:
    while process.stderr and (line := await process.stderr.readline()):
        _log.warning("the agent in the distro: %s", text(line))
