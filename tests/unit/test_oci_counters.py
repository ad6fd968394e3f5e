"""The kernel's counters as v1 and v2 write them, from files that a test has written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zlayer_driver.host.cgroups import Mode, Trees, oom_kills, trees
from zlayer_driver.host.usage import cpu_ns, processes, read

HYBRID = """\
24 1 0:21 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
25 24 0:22 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
26 24 0:23 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
27 24 0:24 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
28 1 0:22 / /elsewhere rw,relatime - cgroup cgroup rw,cpu,cpuacct
"""
V2 = "30 24 0:26 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
V1 = "25 24 0:22 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"


@pytest.mark.parametrize(
    ("mountinfo", "mode"), [(HYBRID, Mode.HYBRID), (V2, Mode.V2), (V1, Mode.V1), ("1 0 8:1 / / rw - ext4 /dev/vda rw\n", Mode.NONE)]
)
def test_modes_are_told_by_the_mount_table(mountinfo: str, mode: Mode) -> None:
    assert trees(mountinfo).mode is mode


def test_trees_mounted_together_or_twice_count_once() -> None:
    found = trees(HYBRID)
    both = Path("/sys/fs/cgroup/cpu,cpuacct")
    assert found.v1 == {"cpu": both, "cpuacct": both, "name=systemd": Path("/sys/fs/cgroup/systemd")}
    assert sorted(found.roots()) == [both, Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup/unified")]


def write(group: Path, **files: str) -> None:
    group.mkdir(parents=True)
    for name, text in files.items():
        (group / name.replace("__", ".")).write_text(text)


def test_usage_of_v2(tmp_path: Path) -> None:
    write(
        tmp_path / "zlayer-x",
        cpu__stat="usage_usec 3000\nuser_usec 2000\nsystem_usec 1000\nnr_periods 5\nnr_throttled 2\nthrottled_usec 70\n",
        memory__stat="anon 100\nfile 200\ninactive_file 50\n",
        memory__current="400\n",
        memory__max="max\n",
        memory__peak="500\n",
        memory__events="low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n",
        io__stat="8:0 rbytes=10 wbytes=20 rios=1 wios=1\n8:16 rbytes=1 wbytes=2\n",
        pids__current="4\n",
        pids__max="99\n",
    )
    used = read(Trees({}, tmp_path), "/zlayer-x")
    assert (used.cpu_ns, used.cpu_system_ns, used.throttled_periods, used.throttled_ns) == (3_000_000, 1_000_000, 2, 70_000)
    assert (used.memory_bytes, used.memory_limit_bytes, used.memory_peak_bytes, used.rss_bytes, used.cache_bytes) == (
        400,
        None,
        500,
        100,
        200,
    )
    assert (used.read_bytes, used.write_bytes, used.pids, used.pids_limit, used.swap_bytes) == (11, 22, 4, 99, None)
    assert oom_kills("/zlayer-x", Trees({}, tmp_path)) == 2


def test_usage_of_v1(tmp_path: Path) -> None:
    write(
        tmp_path / "memory/x",
        memory__usage_in_bytes="400",
        memory__limit_in_bytes="9223372036854771712",
        memory__oom_control="under_oom 0\noom_kill 1\n",
    )
    write(tmp_path / "blkio/x", blkio__throttle__io_service_bytes="8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n")
    mounted = Trees({name: tmp_path / name for name in ("memory", "blkio")}, None)
    used = read(mounted, "/x")
    assert (used.memory_bytes, used.memory_limit_bytes, used.read_bytes, used.write_bytes, used.cpu_ns) == (400, None, 10, 20, 0)
    assert oom_kills("/x", mounted) == 1


def test_processes_of_a_group_and_below_it(tmp_path: Path) -> None:
    """Those that have ended since the list was read do not count."""
    write(tmp_path / "x", cgroup__procs=f"{2**22 + 1}\n")
    write(tmp_path / "x/below", cgroup__procs=f"{os.getpid()}\n")
    (used,) = processes(Trees({}, tmp_path), "/x").values()
    assert used.rss_bytes > 1 << 20


@pytest.mark.parametrize(
    ("kind", "file", "text"), [("cpuacct", "cpuacct.usage", "7000\n"), ("", "cpu.stat", "usage_usec 7\nuser_usec 5\n")], ids=["v1", "v2"]
)
def test_cpu_time_alone(tmp_path: Path, kind: str, file: str, text: str) -> None:
    write(tmp_path / kind / "x", **{file: text})
    mounted = Trees({"memory": tmp_path, "cpuacct": tmp_path / kind}, None) if kind else Trees({}, tmp_path)
    assert cpu_ns(mounted, "/x") == read(mounted, "/x").cpu_ns == 7000


def test_a_group_that_is_gone_counts_nothing(tmp_path: Path) -> None:
    assert processes(Trees({}, tmp_path), "/gone") == {}
    assert read(Trees({}, tmp_path), "/gone").memory_bytes == 0
    assert oom_kills("/gone", Trees({}, tmp_path)) == 0
