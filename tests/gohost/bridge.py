"""The Python end of the Go host: messages of ours in and out, go-plugin in between."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from google.protobuf import descriptor_pb2, json_format
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from zlayer_driver.wire._gen import base_pb2, driver_pb2

ROOT = Path(__file__).parents[2]
_MAX_LINE = 64 << 20


class Refused(Exception):
    """A status that the Go client got; ``recoverable`` is None where Nomad's detail was not there."""

    def __init__(self, code: str, text: str, recoverable: bool | None) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text
        self.recoverable = recoverable


def descriptors() -> bytes:
    """The messages of both services and all that they need, as a FileDescriptorSet in order of dependency."""
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def add(file: FileDescriptor) -> None:
        for needed in file.dependencies:
            add(needed)
        files[file.name] = descriptor_pb2.FileDescriptorProto.FromString(file.serialized_pb)

    add(base_pb2.DESCRIPTOR)
    add(driver_pb2.DESCRIPTOR)
    return descriptor_pb2.FileDescriptorSet(file=files.values()).SerializeToString()


@functools.cache
def build() -> Path:
    """The Go program, below ``.run`` in the tree; Go's own cache makes a second build instant. Where Go is too old, the test says so."""
    binary = ROOT / ".run/gohost"
    binary.parent.mkdir(exist_ok=True)
    done = subprocess.run(["go", "build", "-o", binary, "."], cwd=Path(__file__).parent, check=False, capture_output=True, text=True)
    if "requires go >= " in done.stderr:
        pytest.skip(f"Go is too old: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return binary


class GoHost:
    """One Go process, which holds at most one plugin. ``log`` has go-plugin's lines and, among them, the plugin's."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []
        self._answers: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        self._said = asyncio.Condition()

    @classmethod
    @contextlib.asynccontextmanager
    async def run(cls, directory: Path, env: Mapping[str, str]) -> AsyncIterator[Self]:
        """``directory`` is for its own file; ``env`` goes over this process's environment, and on to the plugin."""
        described = directory / "messages.pb"
        described.write_bytes(descriptors())
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            build(), described, stdin=pipe, stdout=pipe, stderr=pipe, env={**os.environ, **env}, limit=_MAX_LINE
        )
        host = cls(process)
        reading = asyncio.gather(host._read_answers(), host._read_log())
        try:
            yield host
            assert process.stdin is not None
            process.stdin.close()  # and with it the plugin is killed, as go-plugin kills
        except BaseException:
            process.kill()
            raise
        finally:
            await process.wait()
            await reading

    async def _read_answers(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            answer = json.loads(line)
            self._queue(answer["id"]).put_nowait(answer)

    async def _read_log(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self._said:
                self.log.append(json.loads(line))
                self._said.notify_all()

    async def logged(self, message: str) -> None:
        """Returns once go-plugin or the plugin has said ``message``."""
        async with self._said:
            await self._said.wait_for(lambda: any(line["@message"] == message for line in self.log))

    def _queue(self, number: int) -> asyncio.Queue[dict[str, Any]]:
        return self._answers.setdefault(number, asyncio.Queue())

    def _post(self, do: str, **fields: Any) -> int:
        assert self.process.stdin is not None
        number = len(self._answers) + 1
        self._queue(number)
        self.process.stdin.write(json.dumps({"id": number, "do": do, **fields}).encode() + b"\n")
        return number

    async def _next(self, number: int) -> dict[str, Any]:
        answer = await self._queue(number).get()
        if error := answer.get("error"):
            raise Refused(**error)
        return answer

    async def ask(self, do: str, **fields: Any) -> Any:
        return (await self._next(self._post(do, **fields))).get("value")

    async def launch(self, argv: Sequence[str]) -> dict[str, Any]:
        """The address and pid to reattach with, and the negotiated version."""
        value: dict[str, Any] = await self.ask("launch", argv=list(argv))
        return value

    async def call(self, method: MethodDescriptor, request: Any) -> Any:
        value = await self.ask("call", method=_path(method), message=json_format.MessageToDict(request))
        return json_format.ParseDict(value, GetMessageClass(method.output_type)())

    async def stream(self, method: MethodDescriptor, *requests: Any) -> AsyncIterator[Any]:
        """What comes after ``requests`` were sent. A stream that is left before its end is cancelled."""
        first, *others = (json_format.MessageToDict(request) for request in requests)
        number = self._post("open", method=_path(method), message=first)
        for message in others:
            await self.ask("send", to=number, message=message)
        try:
            while "item" in (answer := await self._next(number)):
                yield json_format.ParseDict(answer["item"], GetMessageClass(method.output_type)())
        except GeneratorExit:
            self._post("cancel", to=number)
            raise


def _path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"
