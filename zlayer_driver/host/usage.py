"""What a control group has used, from the kernel's counters: v1 controllers where they are mounted, else the v2 tree."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from zlayer_driver.host.cgroups import Trees
from zlayer_driver.readings import ProcessUsage

_MOST_PROCESSES = 256  # a fork bomb must not keep its reader from all other work
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CHUNK = 1 << 16
_UNLIMITED = 1 << 60  # v1 says «no limit» by a number near the highest


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupUsage:
    """Bytes, nanoseconds and counts since the group was made; ``None`` where this kernel does not count, a limit of ``None`` is none."""

    cpu_ns: int
    cpu_system_ns: int
    throttled_periods: int | None
    throttled_ns: int | None
    memory_bytes: int
    memory_limit_bytes: int | None
    memory_peak_bytes: int | None
    rss_bytes: int | None
    cache_bytes: int | None
    swap_bytes: int | None
    kernel_bytes: int | None
    kernel_peak_bytes: int | None
    read_bytes: int
    write_bytes: int
    pids: int
    pids_limit: int | None


def read(trees: Trees, path: str) -> GroupUsage:
    """Of the group ``path`` (absolute, as in a runtime spec). What is not there counts as 0."""
    name = path.lstrip("/")
    return _v1(trees.v1, name) if "memory" in trees.v1 else _v2((trees.v2 or Path()) / name)


def cpu_ns(trees: Trees, path: str) -> int:
    """The CPU time of `read` alone, at a twentieth of its price: a group that has not run has hardly changed."""
    name = path.lstrip("/")
    if "memory" in trees.v1:
        return _number(trees.v1.get("cpuacct", Path()) / name / "cpuacct.usage") or 0
    return _table((trees.v2 or Path()) / name / "cpu.stat").get("usage_usec", 0) * 1000


def processes(trees: Trees, path: str) -> dict[int, ProcessUsage]:
    """By pid, of the group ``path`` and those below it."""
    root = trees.v1.get("memory") or trees.v2 or Path()
    found = ((pid, _process(pid)) for pid in islice(_pids(root / path.lstrip("/")), _MOST_PROCESSES))
    return {pid: used for pid, used in found if used}


def _pids(group: Path) -> Iterator[int]:
    yield from map(int, _text(group / "cgroup.procs").split())
    for below in _children(group):
        yield from _pids(below)


def _children(group: Path) -> list[Path]:
    with suppress(FileNotFoundError), os.scandir(group) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []


def _process(pid: int) -> ProcessUsage | None:
    """proc(5): after the name in parentheses come fields 3 on; 14 and 15 are CPU time in ticks, 24 is resident pages."""
    fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return ProcessUsage(int(fields[11]) * _TICK_NS, int(fields[12]) * _TICK_NS, int(fields[21]) * _PAGE_BYTES) if fields else None


def _v1(mounts: Mapping[str, Path], name: str) -> GroupUsage:
    cpu, account, memory, pids, block = (mounts.get(kind, Path()) / name for kind in ("cpu", "cpuacct", "memory", "pids", "blkio"))
    throttling, kinds = _table(cpu / "cpu.stat"), _table(memory / "memory.stat")
    moved = [line.split() for line in _text(block / "blkio.throttle.io_service_bytes").splitlines()]
    return GroupUsage(
        cpu_ns=_number(account / "cpuacct.usage") or 0,
        cpu_system_ns=_number(account / "cpuacct.usage_sys") or 0,
        throttled_periods=throttling.get("nr_throttled"),
        throttled_ns=throttling.get("throttled_time"),
        memory_bytes=_number(memory / "memory.usage_in_bytes") or 0,
        memory_limit_bytes=_number(memory / "memory.limit_in_bytes"),
        memory_peak_bytes=_number(memory / "memory.max_usage_in_bytes"),
        rss_bytes=kinds.get("total_rss"),
        cache_bytes=kinds.get("total_cache"),
        swap_bytes=kinds.get("total_swap"),
        kernel_bytes=_number(memory / "memory.kmem.usage_in_bytes"),
        kernel_peak_bytes=_number(memory / "memory.kmem.max_usage_in_bytes"),
        read_bytes=sum(int(words[2]) for words in moved if words[1:2] == ["Read"]),
        write_bytes=sum(int(words[2]) for words in moved if words[1:2] == ["Write"]),
        pids=_number(pids / "pids.current") or 0,
        pids_limit=_number(pids / "pids.max"),
    )


def _v2(group: Path) -> GroupUsage:
    cpu, kinds = _table(group / "cpu.stat"), _table(group / "memory.stat")
    moved = [word.split("=") for word in _text(group / "io.stat").split() if "=" in word]
    throttled_us = cpu.get("throttled_usec")
    return GroupUsage(
        cpu_ns=cpu.get("usage_usec", 0) * 1000,
        cpu_system_ns=cpu.get("system_usec", 0) * 1000,
        throttled_periods=cpu.get("nr_throttled"),
        throttled_ns=None if throttled_us is None else throttled_us * 1000,
        memory_bytes=_number(group / "memory.current") or 0,
        memory_limit_bytes=_number(group / "memory.max"),
        memory_peak_bytes=_number(group / "memory.peak"),
        rss_bytes=kinds.get("anon"),
        cache_bytes=kinds.get("file"),
        swap_bytes=_number(group / "memory.swap.current"),
        kernel_bytes=kinds.get("kernel"),
        kernel_peak_bytes=None,
        read_bytes=sum(int(value) for key, value in moved if key == "rbytes"),
        write_bytes=sum(int(value) for key, value in moved if key == "wbytes"),
        pids=_number(group / "pids.current") or 0,
        pids_limit=_number(group / "pids.max"),
    )


def traffic(pid: int) -> tuple[int, int]:
    """Bytes received and sent in the network namespace of a process, without loopback; zeros if it is ours or gone."""
    try:
        if Path(f"/proc/{pid}/ns/net").samefile("/proc/self/ns/net"):
            return 0, 0
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    rows = [counters.split() for name, _, counters in (line.partition(":") for line in lines) if name.strip() != "lo"]
    return sum(int(row[0]) for row in rows), sum(int(row[8]) for row in rows)


def _text(file: Path) -> str:
    """Without the layers of `open`, which cost more than the kernel's part."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        parts = []
        while part := os.read(fd, _CHUNK):
            parts.append(part)
    except OSError:
        return ""
    finally:
        os.close(fd)
    return b"".join(parts).decode("utf-8", "replace")


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return number if text.isdecimal() and (number := int(text)) < _UNLIMITED else None


def _table(file: Path) -> dict[str, int]:
    return {key: int(value) for key, _, value in (line.partition(" ") for line in _text(file).splitlines()) if value.isdecimal()}
