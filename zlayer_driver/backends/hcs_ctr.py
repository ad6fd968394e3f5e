"""ctr, the command line of containerd: what it is told, and what its answers mean."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NamedTuple

from zlayer_driver.errors import DriverError, InternalError, Unsupported
from zlayer_driver.host.commands import Completed, begin, finish, run

PROGRAM: Final = "ctr.exe"
ADDRESS: Final = r"\\.\pipe\containerd-containerd"
NAMESPACE: Final = "zlayer"
HINT: Final = "install containerd 2 with its service, and put its directory on the PATH"
_TIMEOUT_S: Final = 60.0
KILL: Final = 9  # the one signal that the shim ends a process at
_FENCE_PAUSE_S: Final = 0.5
_EVENT: Final = re.compile(r".* (\S+) (/\S+) (\{.*\})\s*")  # time, which has blanks; namespace; topic; the event as JSON
_EXIT, _UPDATE = "/tasks/exit", "/containers/update"


class Task(NamedTuple):
    pid: int
    status: str


class Ctr:
    """Refusals come as exit code 1 with a last line that begins with ``ctr: ``."""

    def __init__(self, address: str = ADDRESS) -> None:
        self._first = [PROGRAM, "--address", address, "--namespace", NAMESPACE]
        self._documents: dict[str, Any] = {}

    def argv(self, *words: str) -> list[str]:
        return [*self._first, *words]

    async def run(self, *words: str, timeout_s: float = _TIMEOUT_S) -> Completed:
        return await run(self.argv(*words), timeout_s=timeout_s)

    async def ask(self, *words: str, failed: Callable[[str], DriverError] = Unsupported, timeout_s: float = _TIMEOUT_S) -> str:
        """What it writes; ``failed`` makes an error of its own words, should it refuse."""
        done = await self.run(*words, timeout_s=timeout_s)
        if done.status != 0:
            raise failed(refusal(done) or f"ctr exited with {done.status}")
        return done.stdout.decode("utf-8", "replace")

    async def json(self, digest: str) -> Any:
        """A document of the content store, kept: it is what its digest says."""
        if digest not in self._documents:
            self._documents[digest] = json.loads(await self.ask("content", "get", digest, failed=InternalError))
        return self._documents[digest]

    async def version(self) -> str:
        """Of the server; it fails where none answers."""
        told = await self.ask("version")
        return told.partition("Server:")[2].partition("Version:")[2].split()[0]

    async def task(self, container: str) -> Task | None:
        rows = [line.split() for line in (await self.ask("tasks", "list")).splitlines()[1:]]
        return next((Task(int(row[1]), row[2]) for row in rows if row[:1] == [container]), None)


def refusal(done: Completed) -> str:
    """Its reason, or nothing."""
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    return next((line.removeprefix("ctr: ") for line in reversed(lines) if line.startswith("ctr: ")), "") if done.status == 1 else ""


class Exits:
    """Tells that tasks have ended, by one ``ctr events`` for all who wait.

    A subscription is not told when it has begun, so it is made to show itself: a label is changed until the event of that is seen. What
    ends after that cannot be missed; what ended before, a look at the task tells.
    """

    def __init__(self, ctr: Ctr) -> None:
        self._ctr = ctr
        self._waiting: dict[str, asyncio.Event] = {}
        self._reading: asyncio.Task[None] | None = None
        self._seen = asyncio.Event()

    @asynccontextmanager
    async def of(self, container: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set when the container's task ends, or when nobody can say any more whether it did."""
        ended = self._waiting.setdefault(container, asyncio.Event())
        if self._reading is None:
            self._seen.clear()
            self._reading = asyncio.create_task(self._read())
        while not self._seen.is_set():
            await self._ctr.ask("containers", "label", container, "zlayer.watched=true")
            with suppress(TimeoutError):
                async with asyncio.timeout(_FENCE_PAUSE_S):
                    await self._seen.wait()
        yield ended

    async def _read(self) -> None:
        filters = (f'namespace=={NAMESPACE},topic=="{topic}"' for topic in (_EXIT, _UPDATE))
        process = await begin(self._ctr.argv("events", *filters))
        try:
            while process.stdout and (line := await process.stdout.readline()):
                self._hear(line.decode("utf-8", "replace"))
        finally:
            self._reading = None
            self._seen.set()
            for ended in self._waiting.values():
                ended.set()
            self._waiting.clear()
            await finish(process)

    def _hear(self, line: str) -> None:
        if not (found := _EVENT.fullmatch(line)):
            return
        event = json.loads(found[3])
        if found[2] == _UPDATE:
            self._seen.set()
        elif event["id"] == event["container_id"] and (ended := self._waiting.pop(event["container_id"], None)):
            ended.set()

    async def close(self) -> None:
        if self._reading:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
