"""The Go host, built once; where Go is missing or too old the tests say so."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.gohost.bridge import GoHost

SOURCE = Path(__file__).parent
ROOT = SOURCE.parents[1]
Open = Callable[[], AbstractAsyncContextManager[GoHost]]


@pytest.fixture(scope="session")
def binary() -> Path:
    """Built below ``.run`` in the tree; Go's own cache makes a second build instant."""
    built = ROOT / ".run/gohost"
    built.parent.mkdir(exist_ok=True)
    go = shutil.which("go")
    assert go is not None, "a test that uses the Go host is marked needs('go')"
    done = subprocess.run([go, "build", "-o", built, "."], cwd=SOURCE, check=False, capture_output=True, text=True)
    if "requires go >= " in done.stderr:
        pytest.skip(f"Go is too old: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return built


@pytest.fixture
def plugin_tmp(tmp_path: Path) -> Path:
    """Where plugins put their sockets; empty when all have gone."""
    path = tmp_path / "t"
    path.mkdir()
    return path


@pytest.fixture
def open_host(binary: Path, tmp_path: Path, plugin_tmp: Path) -> Open:
    """Opens one more Go host."""
    return lambda: GoHost.run(binary, tmp_path, {"TMPDIR": str(plugin_tmp), "PYTHONPATH": str(ROOT)})


@pytest.fixture
async def go(open_host: Open) -> AsyncIterator[GoHost]:
    async with open_host() as host:
        yield host
