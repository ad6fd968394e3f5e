"""What a task may have only where the operator has said so, and what no task may have. Default is to refuse."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from zlayer_driver.config import PluginConfig, TaskConfig
from zlayer_driver.model import Network

# Kernel settings that a namespace has for itself: ipc_namespaces(7), network_namespaces(7). All others are the whole machine's.
_IPC_SYSCTLS = (
    "fs.mqueue.",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
)


NO_NEW_PRIVILEGES = ("no-new-privileges", "no-new-privileges:true", "no-new-privileges=true")


def refusals(block: TaskConfig, operator: PluginConfig, network: Network) -> list[str]:
    """One sentence for each thing in ``block`` that this task cannot have on this node."""
    return [*_rights(block, operator), *_reach(block, operator), *_sysctls(block, network)]


def _capability(name: str) -> str:
    return name.lower().removeprefix("cap_")


def _rights(block: TaskConfig, operator: PluginConfig) -> Iterator[str]:
    allowed = {_capability(name) for name in operator.allow_caps}
    refused = [name for name in block.cap_add if "all" not in allowed and _capability(name) not in allowed]
    if refused:
        yield f"cap_add: the operator's allow_caps does not have {', '.join(refused)}"
    if block.privileged and not operator.allow_privileged:
        yield "privileged: the operator has not set allow_privileged"
    if block.oci_runtime and block.oci_runtime not in {operator.oci_runtime, *operator.allow_oci_runtimes}:
        yield f"oci_runtime: the operator's allow_oci_runtimes does not have {block.oci_runtime!r}"
    for option in block.security_opt:
        kind, _, value = option.partition("=")
        if option not in NO_NEW_PRIVILEGES and (kind != "seccomp" or not value):
            yield f'security_opt: {option!r} is neither "no-new-privileges" nor "seccomp=unconfined" nor "seccomp=<file>"'
        elif kind == "seccomp" and not operator.allow_seccomp:
            yield f"security_opt: {option!r} needs the operator's allow_seccomp"


def _reach(block: TaskConfig, operator: PluginConfig) -> Iterator[str]:
    modes = {"pid_mode": block.pid_mode, "ipc_mode": block.ipc_mode, "uts_mode": block.uts_mode}
    for key in (key for key, mode in modes.items() if mode and not operator.allow_host_namespaces):
        yield f'{key}: the operator has not set allow_host_namespaces, which "host" needs'
    for device in block.devices:
        if not any(fnmatchcase(device.host_path, pattern) for pattern in operator.allow_devices):
            yield f"devices: the operator's allow_devices does not have {device.host_path!r}"
    if block.uts_mode and block.hostname:
        yield "hostname: a task in the node's uts namespace has the node's name"
    if block.init and block.pid_mode:
        yield "init: a task in the node's pid namespace has the node's init"


def _sysctls(block: TaskConfig, network: Network) -> Iterator[str]:
    for name in block.sysctl:
        if not name.startswith((*_IPC_SYSCTLS, "net.")) or ".." in name or "/" in name:
            yield f"sysctl: {name!r} is no setting of a container's own namespaces"
        elif network.mode == "host" if name.startswith("net.") else block.ipc_mode:
            yield f"sysctl: {name!r} would change the node, whose namespace the task shares"
