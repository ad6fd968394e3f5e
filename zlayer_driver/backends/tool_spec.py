"""What of a task a tool can be told, and what not."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping

from zlayer_driver.errors import Unsupported
from zlayer_driver.model import Resources, TaskSpec

_PLAIN = TaskSpec(id="", name="", image="")
_GIVEN_UP: Mapping[str, Callable[[TaskSpec], object]] = {
    "user": lambda spec: spec.user,
    "group_add": lambda spec: spec.groups,
    "work_dir": lambda spec: spec.work_dir,
    "init": lambda spec: spec.init,
    "ulimit": lambda spec: spec.ulimits,
    "sysctl": lambda spec: dict(spec.sysctls),
    "shm_size": lambda spec: spec.shm_bytes,
    "tmpfs": lambda spec: [mount for mount in spec.mounts if mount.kind == "tmpfs"],
    "read-only mounts": lambda spec: [mount for mount in spec.mounts if mount.read_only],
    "devices": lambda spec: spec.devices,
    "oci_runtime": lambda spec: spec.oci_runtime,
    "network mode": lambda spec: spec.network.mode,
    "dns": lambda spec: (spec.network.dns_servers, spec.network.dns_searches, spec.network.dns_options),
    "extra_hosts": lambda spec: spec.network.extra_hosts,
    "capabilities": lambda spec: (spec.security.cap_add, spec.security.cap_drop),
    "privileged": lambda spec: spec.security.privileged,
    "readonly_rootfs": lambda spec: spec.security.readonly_rootfs,
    "security_opt": lambda spec: (spec.security.no_new_privileges, spec.security.seccomp),
    "host namespaces": lambda spec: spec.security.host_namespaces,
}


def refuse_all_but(spec: TaskSpec, able: Collection[str], *, backend: str) -> None:
    """`Unsupported`, naming each thing that the task asks for and that is none of ``able``: nothing is left out unsaid."""
    asked = [key for key, of in _GIVEN_UP.items() if key not in able and of(spec) != of(_PLAIN)]
    if asked:
        raise Unsupported(
            f"{backend} cannot give a task its {', '.join(asked)}", hint="take them out of the task, or choose another runtime"
        )


def cpus(resources: Resources) -> int:
    """Whole processors for what the task may use of the node's."""
    quota = resources.cpu_quota_us / resources.cpu_period_us if resources.cpu_quota_us else resources.cpu_fraction * (os.cpu_count() or 1)
    return max(1, math.ceil(quota))


def moved(env: Mapping[str, str], places: Mapping[str, str]) -> dict[str, str]:
    """Variables whose value is a path at or below a mount's target, where that target lies elsewhere for the process: under ``places``."""

    def shown(value: str) -> str:
        for target, place in places.items():
            if value == target or value.startswith(f"{target}/"):
                return place + value[len(target) :]
        return value

    return {name: shown(value) for name, value in env.items()}
