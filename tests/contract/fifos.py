"""Hearing what a task says on a FIFO."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

from zlayer_driver.testing.cases import DEADLINE_S

T = TypeVar("T")


async def heard(fifo: Path, starting: Awaitable[T], lines: int = 1) -> tuple[T, list[str]]:
    """What ``starting`` gives, and the first lines of what it has started; `TimeoutError` where that says too little, as when it died early.

    A writer of our own stays until then: another may have gone, whose place is taken, and the right one be yet to come.
    """
    reader = asyncio.StreamReader()
    with os.fdopen(os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as pipe:
        started = await starting
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            async with asyncio.timeout(DEADLINE_S):
                return started, [(await reader.readline()).decode().strip() for _ in range(lines)]
        finally:
            transport.close()
