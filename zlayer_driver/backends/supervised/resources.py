"""Limits and devices of a container, in the runtime spec's terms. The runtime turns them into v1 or v2 control files."""

from __future__ import annotations

import os
import re
import resource
import stat
from pathlib import Path
from typing import Any

from zlayer_driver.backends.supervised import security
from zlayer_driver.errors import InvalidSpec
from zlayer_driver.host import cgroups
from zlayer_driver.model import Device, Resources, TaskSpec, Ulimit

Doc = dict[str, Any]

_KINDS = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}
_MIN_SHARES, _MAX_SHARES = 2, 262_144  # what the kernel's cpu.shares takes
_ONLINE_CPUS = Path("/sys/devices/system/cpu/online")
_CPU_LIST = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*", re.ASCII)
_INFINITY = (1 << 64) - 1  # RLIM_INFINITY, unsigned as in the runtime spec
_OWN_OOM_SCORE = Path("/proc/self/oom_score_adj")


def resources(task: TaskSpec) -> Doc:
    return {"devices": _device_rules(task), **limits(task.resources)}


def limits(wanted: Resources) -> Doc:
    """Those that are set, and nothing of the others."""
    cpu: Doc = {}
    if wanted.cpu_shares:
        cpu["shares"] = min(max(wanted.cpu_shares, _MIN_SHARES), _MAX_SHARES)
    if wanted.cpu_quota_us:
        cpu |= {"quota": wanted.cpu_quota_us, "period": wanted.cpu_period_us}
    if cpus := wanted.cpuset_cpus or (wanted.cpuset_group and cgroups.cpus(wanted.cpuset_group)):
        cpu["cpus"] = _on_this_node(cpus)
    pids = {"limit": wanted.pids} if wanted.pids else {}
    return {key: value for key, value in (("cpu", cpu), ("memory", _memory(wanted)), ("pids", pids)) if value}


def _on_this_node(cpus: str) -> str:
    """A list as ``0-3,5``; `InvalidSpec` if it names CPUs that are not online."""
    online = _numbers(_ONLINE_CPUS.read_text().strip())
    if missing := sorted(_numbers(cpus) - online):
        raise InvalidSpec(f"this node has no CPU {', '.join(map(str, missing[:8]))}, which cpuset {cpus!r} names")
    return cpus


def _numbers(cpus: str) -> set[int]:
    if not _CPU_LIST.fullmatch(cpus):
        raise InvalidSpec(f"{cpus!r} is no list of CPUs such as 0-3,5")
    bounds = [[int(bound) for bound in part.split("-")] for part in cpus.split(",")]
    return {cpu for bound in bounds for cpu in range(bound[0], bound[-1] + 1)}


def _memory(wanted: Resources) -> Doc:
    """``swap`` is memory and swap together; without a word of the task a container gets no swap beyond its memory."""
    memory: Doc = {}
    if wanted.memory_bytes:
        memory["limit"] = wanted.memory_bytes
        if cgroups.trees().counts_swap():
            memory["swap"] = wanted.memory_bytes if wanted.memory_swap_bytes is None else wanted.memory_swap_bytes
    if wanted.memory_reservation_bytes:
        memory["reservation"] = wanted.memory_reservation_bytes
    return memory


def oom_score_adj(wanted: int) -> int:
    """Not below our own: lowering it needs CAP_SYS_RESOURCE, which the driver may lack."""
    return max(wanted, int(_OWN_OOM_SCORE.read_text()))


def rlimit(ulimit: Ulimit) -> Doc:
    """`InvalidSpec` for more than the driver may give: beyond its own hard limit it needs CAP_SYS_RESOURCE."""
    own = resource.getrlimit(getattr(resource, f"RLIMIT_{ulimit.name.upper()}"))[1]
    soft, hard = (_INFINITY if value is None else value for value in (ulimit.soft, ulimit.hard))
    if own != resource.RLIM_INFINITY and hard > own and "CAP_SYS_RESOURCE" not in security.own_capabilities():
        wanted = "unlimited" if ulimit.hard is None else ulimit.hard
        raise InvalidSpec(
            f"ulimit {ulimit.name} cannot be {wanted}: the driver's own hard limit on this node is {own}",
            hint="ask for less, or give the driver CAP_SYS_RESOURCE",
        )
    return {"type": f"RLIMIT_{ulimit.name.upper()}", "soft": soft, "hard": hard}


def devices(task: TaskSpec) -> list[Doc]:
    """Nodes to make, beyond those that every runtime makes itself."""
    return [_node(device) for device in _wanted(task)]


def _device_rules(task: TaskSpec) -> list[Doc]:
    if task.security.privileged:
        return [{"allow": True, "access": "rwm"}]
    rules: list[Doc] = [{"allow": False, "access": "rwm"}]
    for device in task.devices:
        node = _node(device)
        rules.append(
            {"allow": True, "type": node["type"], "major": node["major"], "minor": node["minor"], "access": device.permissions or "rwm"}
        )
    return rules


def _wanted(task: TaskSpec) -> tuple[Device, ...]:
    if not task.security.privileged:
        return task.devices
    named = {device.container_path for device in task.devices}
    nodes = (f"/dev/{entry.name}" for entry in os.scandir("/dev") if _is_device(entry) and entry.name not in ("console", "ptmx", "tty"))
    return (*task.devices, *(Device(path, path) for path in nodes if path not in named))


def _is_device(entry: os.DirEntry[str]) -> bool:
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode) in _KINDS


def _node(device: Device) -> Doc:
    try:
        found = Path(device.host_path).stat()
    except OSError as error:
        raise InvalidSpec(f"device {device.host_path!r} cannot be used: {error.strerror}") from error
    kind = _KINDS.get(stat.S_IFMT(found.st_mode))
    if kind is None:
        raise InvalidSpec(f"{device.host_path!r} is not a device node")
    return {
        "path": device.container_path or device.host_path,
        "type": kind,
        "major": os.major(found.st_rdev),
        "minor": os.minor(found.st_rdev),
        "fileMode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
    }
