"""What a control group has used, from the kernel's counters: v1 controllers where they are mounted, else the v2 tree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zlayer_driver.host.cgroups import Trees

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
    read_bytes: int
    write_bytes: int
    pids: int
    pids_limit: int | None


def read(trees: Trees, path: str) -> GroupUsage:
    """Of the group ``path`` (absolute, as in a runtime spec). What is not there counts as 0."""
    name = path.lstrip("/")
    return _v1(trees.v1, name) if "memory" in trees.v1 else _v2((trees.v2 or Path()) / name)


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
    try:
        return file.read_text()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return number if text.isdecimal() and (number := int(text)) < _UNLIMITED else None


def _table(file: Path) -> dict[str, int]:
    return {key: int(value) for key, _, value in (line.partition(" ") for line in _text(file).splitlines()) if value.isdecimal()}
