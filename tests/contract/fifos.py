"""Hearing what a task says on a FIFO."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


async def heard(fifo: Path, starting: Awaitable[T], lines: int = 1) -> tuple[T, list[str]]:
    """What ``starting`` gives, and the first lines of what it has started; they are empty where that has died early, for nobody waits then."""
    with os.fdopen(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as pipe:
        held = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)  # until then its writers may go, as one does whose place another takes
        try:
            started = await starting
        finally:
            os.close(held)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            return started, [(await reader.readline()).decode().strip() for _ in range(lines)]
        finally:
            transport.close()
