"""From a request to a `TaskSpec`: the task block against what the operator allows. Default is to refuse.

Everything that a task author can get wrong here is reported in one `ConfigError` that lists all of it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from zlayer_driver import fastpath
from zlayer_driver.config import PluginConfig, TaskConfig, parse
from zlayer_driver.errors import ConfigError
from zlayer_driver.grants import NO_NEW_PRIVILEGES, refusals
from zlayer_driver.image.sources import is_file, is_local
from zlayer_driver.model import (
    Auth,
    Device,
    Mount,
    Network,
    Platform,
    PullPolicy,
    Resources,
    Security,
    TaskRequest,
    TaskSpec,
    Ulimit,
)

_LEAST_QUOTA_US = 1000  # the kernel takes no less
_ULIMIT = re.compile(r"(-1|\d{1,19})(?::(-1|\d{1,19}))?", re.ASCII)
# Of Linux, whatever this node is: no other kernel's containers take any. See getrlimit(2).
_ULIMIT_NAME = re.compile("as|core|cpu|data|fsize|memlock|msgqueue|nice|nofile|nproc|rss|rtprio|rttime|sigpending|stack")


def admit(request: TaskRequest, operator: PluginConfig) -> TaskSpec:
    """The container to run for a request, or a `ConfigError` naming each key that does not fit or is not allowed."""
    block = parse(TaskConfig, request.config, what=f"config of task {request.name!r}")
    faults = refusals(block, operator, request.network)
    mounts = (
        *_nomad_directories(request),
        *request.mounts,
        *_volumes(block, request, operator, faults),
        *_mounts(block, request, operator, faults),
    )
    image, image_root = _image(block.image, request, operator, faults)
    network = _network(block, request.network, faults)
    resources = _resources(block, request.resources, faults)
    ulimits = _ulimits(block, faults)
    if faults:
        raise ConfigError(f"config of task {request.name!r} does not fit: {'; '.join(faults)}")
    return TaskSpec(
        id=request.id,
        name=request.name,
        image=image,
        image_root=image_root,
        service=request.group_name or request.job_name or request.name,
        runtime=block.runtime,
        labels=block.labels,
        platform=Platform(block.platform.os, block.platform.arch) if block.platform else None,
        oci_runtime=block.oci_runtime,
        entrypoint=None if block.entrypoint is None else tuple(block.entrypoint),
        command=block.command,
        args=tuple(block.args),
        env=request.env,
        user=request.user,
        groups=tuple(block.group_add),
        work_dir=block.work_dir,
        init=block.init,
        resources=resources,
        ulimits=ulimits,
        sysctls=block.sysctl,
        shm_bytes=block.shm_size,
        mounts=mounts,
        devices=(*request.devices, *_devices(block)),
        network=network,
        security=_security(block, request),
        stdout_path=request.stdout_path,
        stderr_path=request.stderr_path,
        pull=PullPolicy.ALWAYS if block.force_pull else PullPolicy.IF_NOT_PRESENT,
        pull_timeout_s=operator.image_pull_timeout if block.image_pull_timeout is None else block.image_pull_timeout,
        auth=Auth(block.auth.username, block.auth.password) if block.auth else None,
    )


def _image(text: str, request: TaskRequest, operator: PluginConfig, faults: list[str]) -> tuple[str, str]:
    """The image, and the directory that it must lie in if it is a file, unless the operator lets tasks see the whole node.

    Where it really lies is asked again when it is open: other tasks of the allocation may change links until then.
    """
    if not is_local(text):
        return fastpath.canonical(text), ""
    kind, _, rest = text.partition(":")
    if not is_file(text):
        faults.append(f"image: {text!r} is an engine's, which is for the command line: zlayer-driver pull")
    elif not rest:
        faults.append(f"image: {text!r} names no file")
    elif not request.alloc_dir and not operator.allow_volumes:
        faults.append(f"image: {text!r} lies outside the allocation, and the operator has not set allow_volumes")
    return f"{kind}:{_task_dir(request) / rest}", "" if operator.allow_volumes else request.alloc_dir


def _security(block: TaskConfig, request: TaskRequest) -> Security:
    modes = {"pid": block.pid_mode, "ipc": block.ipc_mode, "uts": block.uts_mode}
    seccomp = next((option.partition("=")[2] for option in block.security_opt if option.startswith("seccomp=")), "")
    return Security(
        cap_add=tuple(block.cap_add),
        cap_drop=tuple(block.cap_drop),
        privileged=block.privileged,
        readonly_rootfs=block.readonly_rootfs,
        no_new_privileges=any(option in NO_NEW_PRIVILEGES for option in block.security_opt),
        seccomp=seccomp if seccomp in {"", "unconfined"} else str(_task_dir(request) / seccomp),
        host_namespaces=tuple(kind for kind, mode in modes.items() if mode),
    )


def _resources(block: TaskConfig, given: Resources, faults: list[str]) -> Resources:
    if block.cpu_hard_limit and not given.cpu_fraction:
        faults.append("cpu_hard_limit: Nomad did not say what part of the node's CPU the task has")
    if block.memory_swap is not None and block.memory_swap < given.memory_bytes:
        faults.append(f"memory_swap: {block.memory_swap} bytes are less than the task's memory, which is part of it")
    quota_us = round(given.cpu_fraction * block.cpu_cfs_period * (os.cpu_count() or 1))
    return dataclasses.replace(
        given,
        pids=block.pids_limit,
        cpu_quota_us=max(quota_us, _LEAST_QUOTA_US) if block.cpu_hard_limit else given.cpu_quota_us,
        cpu_period_us=block.cpu_cfs_period if block.cpu_hard_limit else given.cpu_period_us,
        memory_swap_bytes=block.memory_swap,
        oom_score_adj=block.oom_score_adj or given.oom_score_adj,
    )


def _ulimits(block: TaskConfig, faults: list[str]) -> tuple[Ulimit, ...]:
    found = []
    for name, text in block.ulimit.items():
        numbers = _ULIMIT.fullmatch(text)
        if not _ULIMIT_NAME.fullmatch(name) or numbers is None:
            faults.append(f'ulimit: {name} = {text!r} is not a limit such as nofile = "1024:4096"')
            continue
        soft, hard = (None if number == "-1" else int(number) for number in (numbers[1], numbers[2] or numbers[1]))
        if hard is not None and (soft is None or soft > hard):
            faults.append(f"ulimit: the soft limit of {name} = {text!r} is above its hard limit")
        found.append(Ulimit(name, soft, hard))
    return tuple(found)


def _devices(block: TaskConfig) -> tuple[Device, ...]:
    return tuple(Device(device.host_path, device.container_path or device.host_path, device.cgroup_permissions) for device in block.devices)


def _nomad_directories(request: TaskRequest) -> tuple[Mount, ...]:
    """The allocation's shared directory and the task's own two; Nomad leaves these binds to the driver."""
    if not request.alloc_dir:
        return ()
    alloc = Path(request.alloc_dir)
    task = alloc / request.name
    sources = (("/alloc", alloc / "alloc"), ("/local", task / "local"), ("/secrets", task / "secrets"))
    return tuple(Mount(target=target, source=str(source)) for target, source in sources)


def _volumes(block: TaskConfig, request: TaskRequest, operator: PluginConfig, faults: list[str]) -> list[Mount]:
    mounts = []
    for text in block.volumes:
        source, _, rest = text.partition(":")
        target, _, mode = rest.partition(":")
        if not source or not target.startswith("/") or mode not in {"", "ro", "rw"}:
            faults.append(f"volumes: {text!r} is not source:target[:ro] with an absolute target")
            continue
        path = _source(source, request, operator, "volumes", faults)
        mounts.append(Mount(target=target, source=path, read_only=mode == "ro"))
    return mounts


def _mounts(block: TaskConfig, request: TaskRequest, operator: PluginConfig, faults: list[str]) -> list[Mount]:
    mounts = []
    for wanted in (*block.mount, *block.mounts):
        common = Mount(target=wanted.target, kind=wanted.type, read_only=wanted.readonly)
        if wanted.type == "tmpfs":
            mount = dataclasses.replace(common, size_bytes=wanted.tmpfs_options.size, mode=wanted.tmpfs_options.mode)
        else:
            path = _source(wanted.source, request, operator, "mount", faults)
            mount = dataclasses.replace(common, source=path, propagation=wanted.bind_options.propagation)
        mounts.append(mount)
    return mounts


def _source(source: str, request: TaskRequest, operator: PluginConfig, key: str, faults: list[str]) -> str:
    """The real path of what is to be bound: it must lie inside the allocation, whatever symbolic links say, or the operator allow it."""
    real = os.path.realpath(_task_dir(request) / source)
    inside = bool(request.alloc_dir) and Path(real).is_relative_to(os.path.realpath(request.alloc_dir))
    if not inside and not operator.allow_volumes:
        faults.append(f"{key}: {source!r} lies outside the allocation, and the operator has not set allow_volumes")
    return real


def _task_dir(request: TaskRequest) -> Path:
    return Path(request.alloc_dir, request.name) if request.alloc_dir else Path("/")


def _extra_hosts(block: TaskConfig, faults: list[str]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in block.extra_hosts:
        name, _, address = text.partition(":")
        if not name or not address or any(c.isspace() for c in text):
            faults.append(f"extra_hosts: {text!r} is not name:address")
        pairs.append((name, address))
    return tuple(pairs)


def _network(block: TaskConfig, given: Network, faults: list[str]) -> Network:
    """The task's own words, for each kind that it says something of, in place of the group's."""
    return dataclasses.replace(
        given,
        hostname=block.hostname or given.hostname,
        dns_servers=tuple(block.dns_servers) or given.dns_servers,
        dns_searches=tuple(block.dns_search_domains) or given.dns_searches,
        dns_options=tuple(block.dns_options) or given.dns_options,
        extra_hosts=(*given.extra_hosts, *_extra_hosts(block, faults)),
    )
