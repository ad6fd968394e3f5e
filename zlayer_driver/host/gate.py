"""The gate in which ``runc create`` leaves a container, opened by a small program of ours that outlives the driver: ``gate.c``."""

from __future__ import annotations

import asyncio
from pathlib import Path

from zlayer_driver.errors import TimedOut
from zlayer_driver.host.pidfd import PidFd
from zlayer_driver.host.processes import reap, spawn

PROGRAM = Path(__file__).with_name("gate")


async def open_gate(fifo: Path, init: PidFd, container: str, *, timeout_s: float) -> bool:
    """Whether the container has passed ``fifo`` and runs; false too where there is no such gate, or no such program."""
    if not PROGRAM.exists():
        return False
    child = spawn([str(PROGRAM), str(fifo), str(init.fileno()), container], pass_fds=(init.fileno(),))
    try:
        async with asyncio.timeout(timeout_s):
            return await reap(child) == 0
    except TimeoutError:
        raise TimedOut(f"the start of container {container!r}", timeout_s) from None
