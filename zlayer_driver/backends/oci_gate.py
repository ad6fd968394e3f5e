"""Letting a created container of runc run, without the process that ``runc start`` is: a quarter of a start's time.

The init of a created container has its ``exec.fifo`` open as a path, opens that for writing, which blocks until there is a reader, writes
a byte and executes the container's program. The state of a container is «created» as long as the FIFO has its name. All that ``runc
start`` does for a container without hooks is to read that byte and to take the name away.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from zlayer_driver.host.pidfd import ProcessId, identify

_WAITING = b"runc:["  # what the init of a container calls itself before it executes the container's program


async def open_gate(fifo: Path | None, ended: Callable[[], Awaitable[object]]) -> bool:
    """Whether there was a gate to open. Returns when the container has passed it, or has ``ended``.

    The name goes before the reader comes: whoever finds a container without it after a crash asks `is_waiting`, and never takes one that
    ran for one that did not.
    """
    reader = _reader(fifo) if fifo else None
    if reader is None:
        return False
    try:
        await _passed(reader, ended)
    finally:
        os.close(reader)
    return True


def _reader(fifo: Path) -> int | None:
    try:
        gate = os.open(fifo, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fifo.unlink()
        return os.open(f"/proc/self/fd/{gate}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(gate)


async def _passed(reader: int, ended: Callable[[], Awaitable[object]]) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(reader, readable.set)
    waits = [asyncio.ensure_future(readable.wait()), asyncio.ensure_future(ended())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        loop.remove_reader(reader)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


def is_waiting(init: ProcessId) -> bool:
    """Whether a container has not run its program yet."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{init.pid}/comm").read_bytes().startswith(_WAITING) and identify(init.pid) == init
    return False
