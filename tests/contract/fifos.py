"""Hearing what a task says on a FIFO."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


@asynccontextmanager
async def heard(fifo: Path) -> AsyncIterator[asyncio.StreamReader]:
    """What is written to it from now on, up to the end of its last writer: a task that dies early keeps nobody waiting."""
    reader = asyncio.StreamReader()
    pipe = os.fdopen(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        yield reader
    finally:
        transport.close()
