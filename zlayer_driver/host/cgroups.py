"""Control groups as they are mounted here: v1, hybrid (v1 controllers beside a v2 tree), or v2. A group is named by its path in all trees."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from zlayer_driver.errors import InternalError, TimedOut
from zlayer_driver.host.pidfd import PidFd, identify

_KILL_TIMEOUT_S = 10.0
_SETTLE_TRIES, _SETTLE_S = 100, 0.01
_LEAST_SHARES, _SHARES_SPAN = 2, 262_142  # what cpu.shares takes; 1 to 10,000 is what cpu.weight takes
_COUNTING = ("cpuacct", "memory")
_THAWED = (("freezer.state", "THAWED"), ("cgroup.freeze", "0"))
_MOUNTS = Path("/proc/self/mountinfo")
_NO_CONTROLLER = {"rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode"}
_awakening = threading.Lock()


class Mode(StrEnum):
    V1 = "v1"
    HYBRID = "hybrid"
    V2 = "v2"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Trees:
    """Mount points: of the v1 controllers by name (co-mounted ones share theirs), and of the v2 tree."""

    v1: dict[str, Path]
    v2: Path | None

    @property
    def mode(self) -> Mode:
        if not self.v1:
            return Mode.V2 if self.v2 else Mode.NONE
        return Mode.HYBRID if self.v2 else Mode.V1

    def v2_controllers(self) -> list[str]:
        return (self.v2 / "cgroup.controllers").read_text().split() if self.v2 else []

    def counts_swap(self) -> bool:
        """Whether a limit on memory and swap together can be set."""
        memory = self.v1.get("memory")
        return (memory / "memory.memsw.limit_in_bytes").exists() if memory else self.mode is Mode.V2

    def roots(self) -> Iterable[Path]:
        """Every mount point once."""
        return dict.fromkeys([*self.v1.values(), *([self.v2] if self.v2 else [])])

    def directories(self, path: str) -> Iterator[Path]:
        """Where the group ``path`` (absolute, as in a runtime spec) exists."""
        return (group for root in self.roots() if (group := root / path.lstrip("/")).is_dir())


def trees(mountinfo: str = "") -> Trees:
    """From a mount table, this process's own unless one is given: proc(5), mountinfo. Of a tree mounted twice, the first place counts."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in (mountinfo or _MOUNTS.read_text()).splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        where = Path(left.split(" ")[4])
        if kind == "cgroup2":
            v2 = v2 or where
        elif kind == "cgroup":
            for option in set(options.split(",")) - _NO_CONTROLLER:
                v1.setdefault(option, where)
    return Trees(v1, v2)


def oom_kills(path: str, mounted: Trees | None = None) -> int:
    """How many processes of the group the kernel killed for want of memory; 0 if the group is gone."""
    mounted = mounted or trees()
    memory = mounted.v1.get("memory")
    tree, file = (memory, "memory.oom_control") if memory else (mounted.v2 or Path(), "memory.events")
    try:
        lines = (tree / path.lstrip("/") / file).read_text().splitlines()
    except OSError:
        return 0
    return int(dict(line.split(" ", 1) for line in lines).get("oom_kill", 0))


def cpus(group: str) -> str:
    """What the processes of the group in this directory may run on, as a list such as ``0-3,5``; empty without one, or if it does not say."""
    for name in ("cpuset.cpus.effective", "cpuset.effective_cpus") if group else ():
        with suppress(OSError):
            return Path(group, name).read_text().strip()
    return ""


def make(path: str, *, cpu_shares: int, cpuset_cpus: str) -> list[Path]:
    """The group ``path`` where CPU time and memory are counted, and where it takes such limits, as v1 names them (0 and empty: none).

    Gives its directories, for processes to enter.
    """
    mounted = trees()
    files: dict[Path, dict[str, str]] = {mounted.v1[name]: {} for name in _COUNTING if name in mounted.v1}
    if (tree := mounted.v1.get("cpu")) and cpu_shares:
        files.setdefault(tree, {})["cpu.shares"] = str(cpu_shares)
    if (tree := mounted.v1.get("cpuset")) and cpuset_cpus:
        files.setdefault(tree, {}).update({"cpuset.mems": (tree / "cpuset.mems").read_text().strip(), "cpuset.cpus": cpuset_cpus})
    if mounted.mode is Mode.V2 and mounted.v2:
        wanted = {"cpu", "cpuset", "memory"}.intersection(mounted.v2_controllers())
        (mounted.v2 / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted))
        weight = {"cpu.weight": str(1 + (cpu_shares - _LEAST_SHARES) * 9999 // _SHARES_SPAN)} if cpu_shares else {}
        files[mounted.v2] = weight | ({"cpuset.cpus": cpuset_cpus} if cpuset_cpus else {})
    return [_made(tree / path.lstrip("/"), texts) for tree, texts in files.items()]


def _made(group: Path, files: dict[str, str]) -> Path:
    group.mkdir(exist_ok=True)
    for name, text in files.items():
        (group / name).write_text(text)
    return group


def awaken() -> None:
    """Has the kernel ready to move processes between groups: after a pause the first move waits some 10 ms, until all CPUs know of it.

    Blocks for that long, and so is for a thread, while what is to be moved is made. Moves this process to where it is.
    """
    if not _awakening.acquire(blocking=False):
        return
    try:
        with suppress(OSError):
            v2, v1 = of_process(os.getpid())
            if group := next(iter(v1), v2):
                (group / "cgroup.procs").write_text("0")
    finally:
        _awakening.release()


def of_process(pid: int) -> tuple[Path | None, list[Path]]:
    """The directories of a process's groups: that in the v2 tree, and those under v1."""
    mounted, v2, v1 = trees(), None, []
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if names and (tree := mounted.v1.get(names.split(",")[0])):
            v1.append(tree / path.lstrip("/"))
        elif not names and mounted.v2:
            v2 = mounted.v2 / path.lstrip("/")
    return v2, v1


def frozen(path: str) -> bool:
    """Whether the group is, or is about to be, in any tree."""
    states = [(group / file, word) for group in trees().directories(path) for file, word in _THAWED]
    return any(file.exists() and file.read_text().strip() != word for file, word in states)


def thaw(path: str) -> None:
    """Lets a frozen group run on: what is frozen under v1 does not even die of SIGKILL."""
    for group in trees().directories(path):
        _thaw(group)


def _thaw(group: Path) -> None:
    for file, word in _THAWED:
        if (group / file).exists():
            (group / file).write_text(word)


async def remove(path: str) -> None:
    """Kills what is in the group, waits for its end, and removes the group from every tree; a group that is not there is fine."""
    for group in trees().directories(path):
        for _, below, _ in os.walk(group, topdown=False, followlinks=False):
            for name in below:
                await _remove_one(group / name)
        await _remove_one(group)


async def _remove_one(group: Path) -> None:
    for _ in range(_SETTLE_TRIES):
        if _rmdir(group):
            return
        await _kill(group)
        await asyncio.sleep(_SETTLE_S)  # who has just ended is in no list, and may still be counted
    raise InternalError(f"control group {group} cannot be removed: it is busy; its processes are {_processes(group)}")


def _rmdir(group: Path) -> bool:
    """Whether the group is gone; false while it is busy."""
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


async def _kill(group: Path) -> None:
    _thaw(group)
    for pid in _processes(group):
        process = identify(pid)
        handle = PidFd.open(process) if process else None
        if handle is None:
            continue
        with handle:
            handle.send(signal.SIGKILL)
            try:
                async with asyncio.timeout(_KILL_TIMEOUT_S):
                    await handle.wait()
            except TimeoutError:
                raise TimedOut(f"the end of process {pid} in {group}", _KILL_TIMEOUT_S) from None


def _processes(group: Path) -> list[int]:
    with suppress(OSError):
        return [int(line) for line in (group / "cgroup.procs").read_text().split()]
    return []
