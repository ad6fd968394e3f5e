"""Go hosts whose plugins keep their sockets in a directory of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.gohost.bridge import ROOT, GoHost

Open = Callable[[], AbstractAsyncContextManager[GoHost]]


@pytest.fixture
def open_host(tmp_path: Path, socket_dir: Path) -> Open:
    """Opens one more Go host, whose plugins put their sockets in `socket_dir`."""
    return lambda: GoHost.run(tmp_path, {"TMPDIR": str(socket_dir), "PYTHONPATH": str(ROOT)})


@pytest.fixture
async def go(open_host: Open) -> AsyncIterator[GoHost]:
    async with open_host() as host:
        yield host
