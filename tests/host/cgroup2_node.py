"""A node whose kernel has no control groups but those of v2: lives of containers on it, by each runtime.

Run by `tests.host.test_oci_cgroup2` in a guest: ``python -m tests.host.cgroup2_node IMAGES STATE``. STATE is on a file system that can hold an overlay's upper layer.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tests.host.oci_lab import OneImage, backend, bundle_of, handle, remains, shell
from zlayer_driver.backends.oci import OciBackend
from zlayer_driver.host import cgroups
from zlayer_driver.model import Exit, Handle, Resources

MIB = 1 << 20
LIMITS = Resources(
    cpu_shares=512,
    cpu_quota_us=50_000,
    cpuset_cpus="1",
    memory_bytes=64 * MIB,
    memory_reservation_bytes=32 * MIB,
    pids=20,
    memory_swap_bytes=80 * MIB,
)
FILES = {
    "cpu.max": "50000 100000",
    "cpuset.cpus": "1",
    "memory.max": str(64 * MIB),
    "memory.low": str(32 * MIB),
    "memory.swap.max": str(16 * MIB),
    "pids.max": "20",
}
# It uses CPU and the page cache, holds, and takes all memory when it is told to stop.
SCRIPT = """
trap 'dd if=/dev/zero of=/dev/null bs=128M count=1; exit $?' TERM
dd if=/dev/zero of=/tmp/file bs=1M count=8 2>/dev/null
i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done
echo $(nproc) ready
while :; do sleep 1000 & wait $!; done
"""


def become_a_root() -> None:
    """As on a node that was booted so: no process beside the groups below the root, and every controller handed down."""
    root = Path("/sys/fs/cgroup")
    (root / "node").mkdir()
    (root / "node/cgroup.procs").write_text("0")
    controllers = (root / "cgroup.controllers").read_text().split()
    (root / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))


async def check_limits(oci: OciBackend, task: Handle, group: Path) -> None:
    assert {name: (group / name).read_text().strip() for name in FILES} == FILES
    assert 1 <= int((group / "cpu.weight").read_text()) < 100
    await oci.update(task, Resources(memory_bytes=48 * MIB, pids=21))
    assert [(group / name).read_text().strip() for name in ("memory.max", "pids.max", "cpu.max")] == [str(48 * MIB), "21", "50000 100000"]


async def check_usage(oci: OciBackend, task: Handle) -> None:
    now = await anext(await oci.stream_usage(task))
    assert now.cpu_total_ns > (now.cpu_system_ns or 0) > 0
    assert (now.pids, now.pids_limit, now.memory_limit_bytes) == (2, 21, 48 * MIB)
    assert min(now.memory_bytes, now.memory_cache_bytes or 0) >= 8 * MIB
    assert now.memory_rss_bytes
    assert now.memory_kernel_bytes
    assert now.memory_swap_bytes == 0
    assert now.cpu_throttled_periods
    assert await oci.pid(task) in now.processes


async def check_freezer(oci: OciBackend, task: Handle, group: Path) -> None:
    await oci.pause(task)
    assert "frozen 1" in (group / "cgroup.events").read_text()
    await oci.resume(task)
    assert "frozen 0" in (group / "cgroup.events").read_text()


async def live(root: Path, images: OneImage, runtime: str) -> None:
    root.mkdir()
    os.mkfifo(root / "out")
    oci = backend(root, images, runtime=runtime)
    group = Path("/sys/fs/cgroup", bundle_of(root, "one").cgroup.strip("/"))
    task = handle("one", await oci.start(shell("one", SCRIPT, resources=LIMITS, stdout_path=str(root / "out"))))
    with (root / "out").open() as out:
        assert out.readline() == "1 ready\n"
    await check_limits(oci, task, group)
    await check_usage(oci, task)
    said = await oci.exec(task, ["cat", "/proc/self/cgroup"], timeout_s=30)
    assert said.stdout.strip() == b"0::/"
    if runtime == "crun":  # a call of runc is a second of an emulated processor
        await check_freezer(oci, task, group)
    await oci.stop(task, timeout_s=30, signal="")
    assert await oci.wait(task) == Exit(137, 9, oom_killed=True)
    await oci.destroy(task)
    assert remains(root) == []


async def main(images: Path, state: Path) -> None:
    become_a_root()
    assert cgroups.trees().mode is cgroups.Mode.V2
    for runtime in ("runc", "crun"):
        await live(state / runtime, OneImage(images), runtime)


if __name__ == "__main__":
    asyncio.run(main(*map(Path, sys.argv[1:])))
