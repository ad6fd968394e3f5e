"""What every test shares: the `needs` marker, and the rule that nothing is left behind."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CI = os.environ.get("CI") == "true"
NOWHERE = {"go", "nomad", "youki", "dockerd"}  # what set-up does not bring: a test with one is skipped even in CI


def _missing(need: str) -> str:
    """Why this machine cannot carry the need, or an empty string."""
    if need == "root":
        return "" if os.geteuid() == 0 else "not root"
    if need == "linux":
        return "" if sys.platform == "linux" else f"this is {sys.platform}"
    return "" if shutil.which(need) else f"{need} is not installed"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test whose needs are not met, with the reason; with ``CI=true`` it fails instead, so that none goes missing unseen."""
    reasons = {need: reason for marker in item.iter_markers("needs") for need in marker.args if (reason := _missing(need))}
    if not reasons:
        return
    text = f"needs: {', '.join(reasons.values())}"
    if CI and not reasons.keys() & NOWHERE:
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def _open_fds() -> dict[str, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = str(entry.readlink())
        except OSError:
            continue
    return found


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a unix socket, which `tmp_path` may not."""
    with tempfile.TemporaryDirectory(prefix="zlayer-") as path:
        yield Path(path)


@pytest.fixture
def no_fd_leak() -> object:
    """Fails the test that leaves a file descriptor open. Event descriptors are not counted: gRPC's own threads open them at any time."""
    before = _open_fds()
    yield
    left = {fd: what for fd, what in _open_fds().items() if fd not in before and not what.startswith(("/proc/", "anon_inode:[event"))}
    assert not left, f"file descriptors left open: {left}"
