"""From a request to a `TaskSpec`: the task block against what the operator allows. Default is to refuse.

Everything that a task author can get wrong here is reported in one `ConfigError` that lists all of it.
"""

from __future__ import annotations

import dataclasses
import os.path
from pathlib import Path

from zlayer_driver import fastpath
from zlayer_driver.config import PluginConfig, TaskConfig, parse
from zlayer_driver.errors import ConfigError
from zlayer_driver.model import Auth, Mount, Network, Platform, PullPolicy, Security, TaskRequest, TaskSpec


def admit(request: TaskRequest, operator: PluginConfig) -> TaskSpec:
    """The container to run for a request, or a `ConfigError` naming each key that does not fit or is not allowed."""
    block = parse(TaskConfig, request.config, what=f"config of task {request.name!r}")
    faults = _refusals(block, operator)
    mounts = (*_nomad_directories(request), *request.mounts, *_volumes(block, request, operator, faults))
    extra_hosts = _extra_hosts(block, faults)
    if faults:
        raise ConfigError(f"config of task {request.name!r} does not fit: {'; '.join(faults)}")
    return TaskSpec(
        id=request.id,
        name=request.name,
        image=fastpath.canonical(block.image),
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
        work_dir=block.work_dir,
        resources=dataclasses.replace(request.resources, pids=block.pids_limit),
        mounts=mounts,
        devices=request.devices,
        network=_network(request.network, block.hostname, extra_hosts),
        security=Security(
            cap_add=tuple(block.cap_add),
            cap_drop=tuple(block.cap_drop),
            privileged=block.privileged,
            readonly_rootfs=block.readonly_rootfs,
        ),
        stdout_path=request.stdout_path,
        stderr_path=request.stderr_path,
        pull=PullPolicy.ALWAYS if block.force_pull else PullPolicy.IF_NOT_PRESENT,
        pull_timeout_s=operator.image_pull_timeout if block.image_pull_timeout is None else block.image_pull_timeout,
        auth=Auth(block.auth.username, block.auth.password) if block.auth else None,
    )


def _capability(name: str) -> str:
    return name.lower().removeprefix("cap_")


def _refusals(block: TaskConfig, operator: PluginConfig) -> list[str]:
    faults = []
    allowed = {_capability(name) for name in operator.allow_caps}
    refused = [name for name in block.cap_add if "all" not in allowed and _capability(name) not in allowed]
    if refused:
        faults.append(f"cap_add: the operator's allow_caps does not have {', '.join(refused)}")
    if block.privileged and not operator.allow_privileged:
        faults.append("privileged: the operator has not set allow_privileged")
    if block.oci_runtime and block.oci_runtime not in {operator.oci_runtime, *operator.allow_oci_runtimes}:
        faults.append(f"oci_runtime: the operator's allow_oci_runtimes does not have {block.oci_runtime!r}")
    return faults


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
        resolved = _volume_source(source, request)
        if not resolved.allowed and not operator.allow_volumes:
            faults.append(f"volumes: {source!r} lies outside the allocation, and the operator has not set allow_volumes")
            continue
        mounts.append(Mount(target=target, source=resolved.path, read_only=mode == "ro"))
    return mounts


@dataclasses.dataclass(frozen=True)
class _Source:
    path: str
    allowed: bool  # inside the allocation, whatever symbolic links say


def _volume_source(source: str, request: TaskRequest) -> _Source:
    base = Path(request.alloc_dir, request.name) if request.alloc_dir else Path("/")
    real = os.path.realpath(base / source)
    inside = bool(request.alloc_dir) and Path(real).is_relative_to(os.path.realpath(request.alloc_dir))
    return _Source(real, inside)


def _extra_hosts(block: TaskConfig, faults: list[str]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in block.extra_hosts:
        name, _, address = text.partition(":")
        if not name or not address or any(c.isspace() for c in text):
            faults.append(f"extra_hosts: {text!r} is not name:address")
        pairs.append((name, address))
    return tuple(pairs)


def _network(network: Network, hostname: str, extra_hosts: tuple[tuple[str, str], ...]) -> Network:
    return dataclasses.replace(network, hostname=hostname or network.hostname, extra_hosts=(*network.extra_hosts, *extra_hosts))
