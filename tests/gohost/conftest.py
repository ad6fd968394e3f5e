"""Go hosts whose plugins keep their sockets in a directory of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.gohost.bridge import ROOT, GoHost

Open = Callable[[], AbstractAsyncContextManager[GoHost]]


@pytest.fixture
def plugin_tmp(tmp_path: Path) -> Path:
    """Where plugins put their sockets; empty when all have gone."""
    path = tmp_path / "t"
    path.mkdir()
    return path


@pytest.fixture
def open_host(tmp_path: Path, plugin_tmp: Path) -> Open:
    """Opens one more Go host."""
    return lambda: GoHost.run(tmp_path, {"TMPDIR": str(plugin_tmp), "PYTHONPATH": str(ROOT)})


@pytest.fixture
async def go(open_host: Open) -> AsyncIterator[GoHost]:
    async with open_host() as host:
        yield host
