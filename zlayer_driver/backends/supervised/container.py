"""A container that this process watches: its end, seen at once, and told apart: exit code, signal, or out of memory."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL

from zlayer_driver.backends.supervised.bundle import Bundle, Record, boot_id
from zlayer_driver.backends.supervised.runtime import Runtime
from zlayer_driver.errors import NotFound, TimedOut
from zlayer_driver.host import cgroups, signals
from zlayer_driver.host.pidfd import PidFd
from zlayer_driver.model import Exit

_KILL_TIMEOUT_S = 30.0
_UNKNOWN_CODE = 255
_LAST_SIGNAL = 64


class Container:
    """Owns a pidfd of the container's init and one of its supervisor, each ``None`` if that process was gone already.

    It is kept by this process until `close`: no other takes it for an orphan.
    """

    def __init__(self, bundle: Bundle, record: Record, runtime: Runtime) -> None:
        here = record.boot == boot_id()
        self.bundle = bundle
        self.record = record
        self._runtime = runtime
        self._kept = bundle.keep()
        self._init = PidFd.open(record.init) if here else None
        self._supervisor = PidFd.open(record.supervisor) if here else None
        self._end = bundle.ended()

    @property
    def init(self) -> PidFd:
        """Ours, good while this process watches the container; `NotFound` if it was gone before."""
        if self._init is None:
            raise NotFound(self.bundle.id, "it has ended")
        return self._init

    @property
    def is_kept(self) -> bool:
        return self._kept is not None

    @property
    def is_there(self) -> bool:
        """Whether there is a process to wait for, or an end to tell."""
        return self._init is not None or self._supervisor is not None or self._end is not None or self.bundle.exit_code() is not None

    @property
    def ended(self) -> bool:
        return self._end is not None or self._init is None or self._init.ended()

    async def wait(self) -> Exit:
        """The supervisor ends when it has written the exit code. Where it was killed, the container may go on without it."""
        if self._end is None and self._supervisor is not None:
            await self._supervisor.wait()
        if self._end is None and self._init is not None:
            await self._init.wait()
        if self._end is None:
            self._end = self._read_end()
            self.bundle.write_ended(self._end)
        return self._end

    async def start(self, log: Path) -> str:
        """As `Runtime.start`."""
        return await self._runtime.start(self.bundle, self._init, log)

    async def signal(self, number: int) -> bool:
        """Whether init was there to be signalled."""
        if self._init is None:
            return False
        if number != SIGKILL:
            return await self._runtime.signal(self.bundle, self._init, number)
        if not self._init.ended():
            self.bundle.killed.touch()
        return self._init.send(number)

    async def stop(self, *, timeout_s: float, signal: str) -> None:
        number = signals.number(signal or self.record.stop_signal)
        if await self.signal(number):
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self.wait()
        await self.kill()

    async def kill(self) -> None:
        """Returns when it has ended, which may have been before. SIGKILL for init of a pid namespace ends all others in it."""
        if self._end is None:
            await self.signal(SIGKILL)
            cgroups.thaw(self.bundle.cgroup)
        try:
            async with asyncio.timeout(_KILL_TIMEOUT_S):
                await self.wait()
        except TimeoutError:
            raise TimedOut(f"the end of container {self.bundle.id!r} after SIGKILL", _KILL_TIMEOUT_S) from None

    def close(self) -> None:
        for pidfd in (self._init, self._supervisor):
            if pidfd is not None:
                pidfd.close()
        if self._kept is not None:
            os.close(self._kept)
            self._kept = None

    def _read_end(self) -> Exit:
        """The kernel's word where it has one; else conmon's, in which a signal death and an exit with 128+n look the same."""
        if lost := self.bundle.lost():
            return Exit(_UNKNOWN_CODE, error=lost)
        code = self.bundle.exit_code()
        status = self._init.wait_status() if self._init is not None else None
        if status is not None:
            signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            code = 128 + signal if signal else os.WEXITSTATUS(status)
        elif code is not None:
            signal = code - 128 if 0 < code - 128 <= _LAST_SIGNAL else 0
        else:
            return Exit(_UNKNOWN_CODE, error=f"the exit code of container {self.bundle.id!r} is lost: its supervisor was killed")
        return Exit(code, signal, oom_killed=self._is_oom(code))

    def _is_oom(self, code: int) -> bool:
        """A shell passes the 137 of a killed child on, so the code counts, not the signal; and only if the kill was not ours."""
        if code != 128 + SIGKILL or self.bundle.killed.exists():
            return False
        return self.bundle.oom.exists() or cgroups.oom_kills(self.bundle.cgroup) > 0
