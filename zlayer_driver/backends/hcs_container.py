"""A container of containerd's, and what is known of it here.

::

    root/c/<id>/
        env, logs.json   see `hcs_run`
        record.json      once it runs: which of all containers of the task this is
        killed           there once we ended it by force
        exit.json        the `Exit`, before containerd forgets it
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from zlayer_driver.backends.hcs_ctr import KILL, Ctr, Exits, refusal
from zlayer_driver.errors import InternalError, NotFound, TimedOut
from zlayer_driver.model import Exit, Handle

_KILL_TIMEOUT_S: Final = 60.0
_TOLD: Final = re.compile(r"exit with non-zero exit code (\d+)")
_LOST: Final = Exit(255, error="the exit code is lost: containerd no longer has the task")


def container_id(task_id: str) -> str:
    """A name that containerd takes; the same for the same task, and no two tasks share one."""
    return f"zlayer-{hashlib.sha256(task_id.encode()).hexdigest()[:32]}"


class Container:
    """Nothing need exist. One object per task and process: it holds the lock on the task's end."""

    def __init__(self, root: Path, task_id: str, ctr: Ctr, exits: Exits) -> None:
        self.id = container_id(task_id)
        self.dir = root / "c" / self.id
        self._task_id = task_id
        self._ctr = ctr
        self._exits = exits
        self._collecting = asyncio.Lock()

    def record(self) -> Mapping[str, Any]:
        """Marks it as one that runs; the `Handle.data`."""
        data = {"container": self.id, "incarnation": secrets.token_hex(8)}
        (self.dir / "record.json").write_text(json.dumps(data))
        return data

    def check(self, handle: Handle) -> None:
        """`NotFound` unless it is the one of ``handle``."""
        with suppress(FileNotFoundError):
            record = json.loads((self.dir / "record.json").read_bytes())
            if handle.data in ({}, record):
                return
        raise NotFound(handle.task_id, "this node has no container of it")

    def ended(self) -> Exit | None:
        """What is written here."""
        with suppress(FileNotFoundError):
            return Exit(**json.loads((self.dir / "exit.json").read_bytes()))
        return None

    async def running(self) -> bool:
        task = None if self.ended() else await self._ctr.task(self.id)
        return task is not None and task.status != "STOPPED"

    async def wait(self) -> Exit:
        while (end := self.ended()) is None:
            async with self._exits.of(self.id) as ended:
                if await self.running():
                    await ended.wait()
                    continue
            await self._collect()
            if not self.dir.exists():
                raise NotFound(self._task_id, "it was removed")
        return end

    async def signal(self, number: int) -> None:
        """`NotFound` if it has ended."""
        if number == KILL:
            (self.dir / "killed").touch()
        done = await self._ctr.run("tasks", "kill", "--signal", str(number), self.id)
        if done.status != 0:
            raise NotFound(self._task_id, f"it takes no signal: {refusal(done)}")

    async def kill(self) -> None:
        """Returns when it has ended, which may have been before."""
        if await self.running():
            with suppress(NotFound):
                await self.signal(KILL)
        try:
            async with asyncio.timeout(_KILL_TIMEOUT_S):
                await self.wait()
        except TimeoutError:
            raise TimedOut(f"the end of container {self.id!r}", _KILL_TIMEOUT_S) from None

    async def remove(self) -> None:
        """All of it, whatever there is. A task that ended by itself is signalled too: that is when ctr takes its network away."""
        if self.ended() is None and await self._ctr.task(self.id):
            await self._ctr.run("tasks", "kill", "--signal", str(KILL), self.id)
            await self._ctr.run("tasks", "delete", "--force", self.id)
        done = await self._ctr.run("containers", "delete", self.id)
        if done.status != 0 and not refusal(done).endswith("not found"):
            raise InternalError(f"cannot remove container {self.id!r}: {refusal(done)}", hint="destroy the task again")
        await asyncio.to_thread(shutil.rmtree, self.dir, ignore_errors=True)

    async def _collect(self) -> None:
        """Takes the exit code from containerd, which has it once: the task is deleted with it."""
        async with self._collecting:
            if self.ended() or not self.dir.exists():
                return
            await self._ctr.run("tasks", "kill", "--signal", str(KILL), self.id)  # for its network, as above
            done = await self._ctr.run("tasks", "delete", self.id)
            with suppress(FileNotFoundError):  # removed meanwhile
                half = self.dir / "exit.half"
                half.write_text(json.dumps(asdict(self._end(done.status, done.stderr.decode("utf-8", "replace")))))
                half.replace(self.dir / "exit.json")

    def _end(self, status: int, told: str) -> Exit:
        if (self.dir / "killed").exists():
            return Exit(128 + KILL, KILL)
        if status != 0:
            return _LOST
        code = int(found[1]) if (found := _TOLD.search(told)) else 0
        return Exit(code - (1 << 32) if code >= 1 << 31 else code)  # an NTSTATUS is shown as the negative number that it is
