"""What the kernel counts of a real container, read back."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.host.oci_lab import OneImage, backend, handle, shell
from zlayer_driver.backends.supervised.usage import samples
from zlayer_driver.model import Exit, Network, Resources, TaskState

pytestmark = [pytest.mark.needs("linux", "root", "runc", "conmon", "busybox"), pytest.mark.usefixtures("no_fd_leak")]


async def test_a_busy_container_is_counted(root: Path, images: OneImage) -> None:
    limits = Resources(memory_bytes=64 << 20, pids=30, cpu_quota_us=20_000)
    oci = backend(root, images)
    calls = "dd if=/dev/zero of=/dev/null bs=1 count=200000 2>/dev/null"  # the kernel counts its own time by ticks: a few calls may fall between
    script = f"dd if=/dev/zero of=/tmp/file bs=1M count=8 2>/dev/null; {calls}; i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done"
    task = handle("one", await oci.start(shell("one", script, resources=limits, network=Network(mode="none"))))
    assert await oci.state(task) in TaskState
    assert await oci.wait(task) == Exit(0)
    container = oci._containers["one"]
    seen = [sample async for sample in samples(container, 0.01)]
    assert len(seen) == 1
    now = seen[0]
    assert now.cpu_total_ns > now.cpu_system_ns > 0
    assert now.cpu_throttled_periods is not None
    assert now.cpu_throttled_periods > 0
    assert (now.memory_limit_bytes, now.pids_limit, now.net_rx_bytes) == (64 << 20, 30, 0)
    assert now.memory_cache_bytes is not None
    assert now.memory_cache_bytes >= 8 << 20
    assert now.memory_peak_bytes is not None
    assert now.memory_peak_bytes >= now.memory_bytes > 0
    usage = await oci.usage(task)
    assert usage.cpu_us == now.cpu_total_ns // 1000
    assert (await oci.state(task), await oci.pid(task)) == (TaskState.EXITED, None)
    await oci.destroy(task)


def read_line(path: Path) -> str:
    with path.open() as file:
        return file.readline()


async def test_samples_come_until_the_end(root: Path, images: OneImage) -> None:
    oci = backend(root, images)
    os.mkfifo(root / "out")
    script = "busybox mkfifo /never; echo ready; read line </never"  # one process that stays as it is: an exec has no memory for a moment
    task = handle("one", await oci.start(shell("one", script, stdout_path=str(root / "out"))))
    assert await asyncio.to_thread(read_line, root / "out") == "ready\n"
    assert (await oci.state(task), os.getpgid(await oci.pid(task) or 0) > 0) == (TaskState.RUNNING, True)
    count = 0
    async for sample in samples(oci._containers["one"], 0.01):
        count += 1
        assert sample.pids == 1
        assert list(sample.processes) == [await oci.pid(task)]
        assert all(used.rss_bytes > 0 for used in sample.processes.values())
        if count == 3:
            await oci.signal(task, "KILL")
            break
    assert count == 3
    await oci.wait(task)
    await oci.destroy(task)
