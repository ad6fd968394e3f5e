"""The end of `wsl2_wire` that has the backend: in the distro, on standard input and output, until they close."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from zlayer_driver.backends.wsl2_logs import Logged
from zlayer_driver.backends.wsl2_wire import PROGRESS, Message, Signature, failure, pack, signature
from zlayer_driver.errors import DriverError


class _Call:
    """One call, with what the other side has sent to it since."""

    def __init__(self, number: int, writer: asyncio.StreamWriter) -> None:
        self._number = number
        self._writer = writer
        self._asked: asyncio.Queue[Message] = asyncio.Queue()
        self._inputs: asyncio.Queue[Message] = asyncio.Queue()

    def hear(self, message: Message) -> None:
        (self._asked if "next" in message else self._inputs).put_nowait(message)

    def _send(self, **message: Any) -> None:
        self._writer.write(pack({"id": self._number, **message}))

    async def answer(self, backend: Logged, name: str, given: Message) -> None:
        kind = signature(name)
        arguments: dict[str, Any] = {key: kind.arguments[key].value(value) for key, value in given.items() if key in kind.arguments}
        if "handle" in arguments:
            arguments["handle"] = backend.inner(arguments["handle"])
        if kind.inputs in given:
            arguments[kind.inputs] = self._given(kind)
        if kind.report:
            arguments[kind.report] = lambda step: self._send(report=PROGRESS.plain(step))
        try:
            result = await getattr(backend, name)(**arguments)
            if kind.streams:
                await self._give(kind, result)
            else:
                self._send(gives=kind.gives.plain(result))
        except DriverError as error:
            self._send(**failure(error))

    async def _give(self, kind: Signature, items: AsyncIterator[Any]) -> None:
        self._send(gives=None)
        try:
            while await self._asked.get():
                self._send(item=kind.gives.plain(await anext(items)))
        except StopAsyncIteration:
            self._send(end=True)
        finally:
            await items.aclose()  # type: ignore[attr-defined]  # they are generators

    async def _given(self, kind: Signature) -> AsyncIterator[Any]:
        self._send(want=True)
        while "input" in (message := await self._inputs.get()):
            yield kind.input.value(message["input"])
            self._send(want=True)


async def serve(backend: Logged, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers calls until the other side is gone; those that still run are cancelled then."""
    calls: dict[int, tuple[_Call, asyncio.Task[None]]] = {}
    async with asyncio.TaskGroup() as group:
        while line := await reader.readline():
            message: Message = json.loads(line)
            number = int(message["id"])
            if "call" in message:
                call = _Call(number, writer)
                task = group.create_task(call.answer(backend, message["call"], message["with"]))
                calls[number] = call, task
                task.add_done_callback(partial(_forget, calls, number))
            elif number in calls:
                call, task = calls[number]
                if "cancel" in message:
                    task.cancel()
                else:
                    call.hear(message)
        for _, task in list(calls.values()):
            task.cancel()


def _forget(calls: dict[int, tuple[_Call, asyncio.Task[None]]], number: int, _task: asyncio.Task[None]) -> None:
    del calls[number]
