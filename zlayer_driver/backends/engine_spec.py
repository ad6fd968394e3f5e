"""The body of ``POST /containers/create`` for a task."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

from zlayer_driver.backends.engine_api import Engine
from zlayer_driver.backends.supervised.security import own_capabilities
from zlayer_driver.errors import InvalidSpec
from zlayer_driver.model import Mount, Resources, Security, TaskSpec, Ulimit

Doc = dict[str, Any]

TASK_LABEL = "com.zlayer.task"
STATE_LABEL = "com.zlayer.state"  # tells the containers of one state directory from all others of the engine
_PRIVATE = {"private", "rprivate"}
_RAISED = ("nofile", "nproc")  # limits that engines raise for their containers
_LOG_SIZE = "1m"  # of the engine's own copy: the task's log is Nomad's


def create_body(task: TaskSpec, engine: Engine, labels: dict[str, str], engine_pid: int) -> Doc:
    """`InvalidSpec` for what the engine cannot do."""
    body: Doc = {
        "Image": task.image,
        "Env": [f"{name}={value}" for name, value in task.env.items()],
        "Labels": {**task.labels, **labels},
        "User": task.user,
        "WorkingDir": task.work_dir,
        "Hostname": task.network.hostname,
        "HostConfig": _host_config(task, engine, engine_pid),
    }
    if task.entrypoint is not None:
        body["Entrypoint"] = list(task.entrypoint)
    if task.command:
        body["Cmd"] = [task.command, *task.args]
    elif task.args:
        body["Cmd"] = list(task.args)
    return body


def limits(wanted: Resources) -> Doc:
    """Those that are set, and nothing of the others; without a word of the task there is no swap beyond its memory."""
    swap = wanted.memory_bytes if wanted.memory_swap_bytes is None else wanted.memory_swap_bytes
    found = {
        "CpuShares": wanted.cpu_shares,
        "CpuQuota": wanted.cpu_quota_us,
        "CpuPeriod": wanted.cpu_period_us if wanted.cpu_quota_us else 0,
        "CpusetCpus": wanted.cpuset_cpus,
        "Memory": wanted.memory_bytes,
        "MemorySwap": swap if wanted.memory_bytes else 0,
        "MemoryReservation": wanted.memory_reservation_bytes,
        "PidsLimit": wanted.pids,
    }
    return {key: value for key, value in found.items() if value}


def spec_limits(wanted: Resources) -> Doc:
    """As `limits`, in the terms of the OCI runtime spec."""
    flat = limits(wanted)
    names = {
        "cpu": {"CpuShares": "shares", "CpuQuota": "quota", "CpuPeriod": "period", "CpusetCpus": "cpus"},
        "memory": {"Memory": "limit", "MemorySwap": "swap", "MemoryReservation": "reservation"},
        "pids": {"PidsLimit": "limit"},
    }
    found = {kind: {there: flat[here] for here, there in keys.items() if here in flat} for kind, keys in names.items()}
    return {kind: values for kind, values in found.items() if values}


def _host_config(task: TaskSpec, engine: Engine, engine_pid: int) -> Doc:
    host: Doc = {
        **limits(task.resources),
        "NetworkMode": _network_mode(task, engine),
        "LogConfig": {"Type": engine.log_driver, "Config": {"max-size": _LOG_SIZE}},
        "Mounts": [_mount(mount) for mount in task.mounts],
        "Devices": [
            {"PathOnHost": device.host_path, "PathInContainer": device.container_path, "CgroupPermissions": device.permissions}
            for device in task.devices
        ],
        "Ulimits": [_ulimit(limit) for limit in (*task.ulimits, *_capped(task, engine_pid))],
        "Sysctls": dict(task.sysctls),
        "ShmSize": task.shm_bytes,
        "GroupAdd": list(task.groups),
        "Init": task.init,
        "OomScoreAdj": task.resources.oom_score_adj,
        "Runtime": task.oci_runtime,
        "Dns": list(task.network.dns_servers),
        "DnsSearch": list(task.network.dns_searches),
        "DnsOptions": list(task.network.dns_options),
        "ExtraHosts": [f"{name}:{address}" for name, address in task.network.extra_hosts],
        **_security(task.security, engine),
    }
    return {key: value for key, value in host.items() if value not in ("", [], {}, 0, False)}


def _network_mode(task: TaskSpec, engine: Engine) -> str:
    if task.network.mode != "path":
        return task.network.mode
    if not engine.joins_netns:
        raise InvalidSpec(
            f"{engine.name} cannot put a container into the network namespace of its allocation",
            hint="use network mode host or none, or an engine that can, such as podman",
        )
    return f"ns:{task.network.netns_path}"


def _mount(mount: Mount) -> Doc:
    found: Doc = {"Type": mount.kind, "Target": mount.target, "ReadOnly": mount.read_only}
    if mount.kind == "tmpfs":
        options = {"SizeBytes": mount.size_bytes, "Mode": mount.mode or 0}
        return found | {"TmpfsOptions": {key: value for key, value in options.items() if value}}
    propagation = "rprivate" if mount.propagation in _PRIVATE else mount.propagation
    return found | {"Source": mount.source, "BindOptions": {"Propagation": propagation}}


def _capped(task: TaskSpec, engine_pid: int) -> list[Ulimit]:
    """The engine's own hard limits, on a node that lets nobody beyond: its defaults are, and its containers would not start."""
    if "CAP_SYS_RESOURCE" in own_capabilities():
        return []
    given = {limit.name for limit in task.ulimits}
    own = {name: resource.prlimit(engine_pid, getattr(resource, f"RLIMIT_{name.upper()}"))[1] for name in _RAISED if name not in given}
    return [Ulimit(name, hard, hard) for name, hard in own.items() if hard != resource.RLIM_INFINITY]


def _ulimit(limit: Ulimit) -> Doc:
    soft, hard = (-1 if value is None else value for value in (limit.soft, limit.hard))
    return {"Name": limit.name, "Soft": soft, "Hard": hard}


def _security(security: Security, engine: Engine) -> Doc:
    options = ["no-new-privileges"] if security.no_new_privileges else []
    if security.seccomp:
        options.append(f"seccomp={_filter(security.seccomp, engine)}")
    modes = {"pid": "PidMode", "ipc": "IpcMode", "uts": "UTSMode"}
    return {
        "CapAdd": list(security.cap_add),
        "CapDrop": list(security.cap_drop),
        "Privileged": security.privileged,
        "ReadonlyRootfs": security.readonly_rootfs,
        "SecurityOpt": options,
        **{key: "host" for kind, key in modes.items() if kind in security.host_namespaces},
    }


def _filter(seccomp: str, engine: Engine) -> str:
    if seccomp == "unconfined" or engine.seccomp_by_path:
        return seccomp
    try:
        return Path(seccomp).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"seccomp filter {seccomp!r} cannot be read: {error}") from error
