"""A command in the namespaces and control groups of a process, by a small program of ours: ``enter.c``."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROGRAM = Path(__file__).with_name("enter")
_MFD_EXEC = 0x10  # since Linux 6.3, where what is in memory may else not be executable

# <linux/sched.h>, by the names that runtime specs have for them.
NAMESPACES = {
    "mount": 0x0002_0000,
    "cgroup": 0x0200_0000,
    "uts": 0x0400_0000,
    "ipc": 0x0800_0000,
    "pid": 0x2000_0000,
    "network": 0x4000_0000,
}


@dataclass(frozen=True, slots=True)
class Command:
    """What is executed, and as whom. ``limits`` are (number of the resource, soft, hard); ``capabilities`` a set as of capset(2)."""

    argv: Sequence[str]
    env: Sequence[str]
    cwd: str
    uid: int
    gid: int
    groups: Sequence[int]
    capabilities: int
    limits: Collection[tuple[int, int, int]] = ()
    no_new_privileges: bool = False
    oom_score_adj: int | None = None
    filter: bytes = b""  # as of seccomp(2): instructions of 8 bytes
    filter_flags: int = 0


@cache
def is_usable() -> bool:
    """Whether the program was built, and the kernel executes what is in memory (sysctl vm.memfd_noexec)."""
    try:
        os.close(program())
    except (FileNotFoundError, PermissionError):
        return False
    return True


def program() -> int:
    """An fd of the program as a sealed file in memory: a container that sees the process must not be able to change what the host runs."""
    data = PROGRAM.read_bytes()
    try:
        fd = _in_memory("enter", data, _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = _in_memory("enter", data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return fd


def order(command: Command, *, init: int, namespaces: int, groups: tuple[Path | None, list[Path]], faults: int, terminal: int = -1) -> int:
    """The fd of the program's argument. ``init`` is a pidfd, ``groups`` as of `cgroups.of_process`; of the fds of ``faults`` and ``terminal`` see ``enter.c``."""
    tree, tasks = groups[0] or "", [group / "tasks" for group in groups[1]]
    limits = [number for limit in command.limits for number in limit]
    words = [
        *(faults, init, "" if command.oom_score_adj is None else command.oom_score_adj, namespaces, tree, *_list(tasks), terminal),
        *(command.uid, command.gid, *_list(command.groups), command.capabilities, *_list(limits), command.cwd),
        *(int(command.no_new_privileges), *_list(command.argv), *_list(command.env), command.filter_flags),
    ]
    return _in_memory("order", b"".join(os.fsencode(str(word)) + b"\0" for word in words) + command.filter)


def _list(items: Collection[object]) -> list[object]:
    return [len(items), *items]


def _in_memory(name: str, data: bytes, flags: int = 0) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    with os.fdopen(fd, "wb", closefd=False) as file:
        file.write(data)
    return fd
