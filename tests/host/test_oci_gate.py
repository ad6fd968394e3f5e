"""The gate in which a created container waits, with a process of the test's own in the container's place."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGKILL

import pytest

from zlayer_driver.host.gate import PROGRAM, open_gate
from zlayer_driver.host.pidfd import PidFd, identify

pytestmark = [pytest.mark.needs("linux"), pytest.mark.usefixtures("no_fd_leak")]


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "exec.fifo"
    os.mkfifo(path)
    return path


@contextmanager
def init(script: str, fifo: Path) -> Iterator[PidFd]:
    """A child that is ready to run ``script``, in which ``$1`` is the FIFO."""
    with subprocess.Popen(["/bin/sh", "-c", script, "sh", str(fifo)]) as child:
        process = identify(child.pid)
        pidfd = PidFd.open(process) if process else None
        assert pidfd is not None
        with pidfd:
            yield pidfd
        child.kill()


@pytest.mark.parametrize("then", ["exec sleep 1000", "exit 3"], ids=["runs on", "ends at once"])
async def test_what_waits_is_let_through_and_the_name_goes(fifo: Path, then: str) -> None:
    with init(f'printf 0 >"$1"; {then}', fifo) as waiting:
        assert await open_gate(fifo, waiting, "one", timeout_s=30)
    assert not fifo.exists()


async def test_one_that_ends_in_the_gate_never_ran(fifo: Path) -> None:
    """Its mark stays, so that nobody takes it for one that did."""
    with init("exec sleep 1000", fifo) as waiting:
        waiting.send(SIGKILL)
        assert not await open_gate(fifo, waiting, "one", timeout_s=30)
    assert fifo.exists()


async def test_without_a_gate_or_a_program_the_caller_must_see_to_it(tmp_path: Path, fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with init("exec sleep 1000", fifo) as waiting:
        assert not await open_gate(tmp_path / "none", waiting, "one", timeout_s=30)
        monkeypatch.setattr("zlayer_driver.host.gate.PROGRAM", PROGRAM.with_name("none"))
        assert not await open_gate(fifo, waiting, "one", timeout_s=30)
