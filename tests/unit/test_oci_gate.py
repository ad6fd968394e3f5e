"""The gate in front of a created container, with a thread in the container's place."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from zlayer_driver.backends.oci_gate import is_waiting, open_gate
from zlayer_driver.host.pidfd import ProcessId, identify

pytestmark = [pytest.mark.needs("linux"), pytest.mark.usefixtures("no_fd_leak")]


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "exec.fifo"
    os.mkfifo(path)
    return path


async def never() -> None:
    await asyncio.Event().wait()


async def over() -> None:
    return


def _pass_through(inside: int) -> None:
    """As the container does: by an fd, for the name may be gone by then."""
    with Path(f"/proc/self/fd/{inside}").open("wb", buffering=0) as gate:
        gate.write(b"0")
    os.close(inside)


async def test_what_waits_is_let_through_and_the_name_is_gone(fifo: Path) -> None:
    inside = os.open(fifo, os.O_PATH)
    passing = asyncio.create_task(asyncio.to_thread(_pass_through, inside))
    assert await open_gate(fifo, never)
    await passing
    assert not fifo.exists()


async def test_a_container_that_ends_at_the_gate_is_not_waited_for(fifo: Path) -> None:
    assert await open_gate(fifo, over)
    assert not fifo.exists()


async def test_without_a_gate_there_is_nothing_to_open(tmp_path: Path) -> None:
    assert not await open_gate(None, never)
    assert not await open_gate(tmp_path / "none", never)


def test_what_is_no_containers_init_does_not_wait() -> None:
    assert (own := identify(os.getpid()))
    assert not is_waiting(own)
    assert not is_waiting(ProcessId(2**22 + 1, 1))
