"""The OCI runtime spec (version 1.0.2) of one container, from its image's config and its task."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zlayer_driver import host
from zlayer_driver.backends.supervised import resources, security
from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.backends.supervised.users import User
from zlayer_driver.errors import InvalidSpec
from zlayer_driver.image.values import ImageConfig
from zlayer_driver.model import Mount, TaskSpec

Doc = dict[str, Any]

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAMESPACES = ("pid", "ipc", "uts", "mount", "cgroup")
_LONGEST = 131_071  # bytes of one string of execve(2), without its NUL
_INIT = "/dev/init"  # on a file system of the container's own, so that it leaves nothing in the image's
_INIT_PROGRAM = Path(host.__file__).parent / "init"  # it needs no library, for it must run in any image
_LABEL = "com.zlayer.label."  # a bare annotation could be an order to a runtime
_IPC_DIRECTORIES = ("/dev/shm", "/dev/mqueue")  # noqa: S108  # of the container or of its node, never files of ours
_PROPAGATION = {"private": "rprivate", "rprivate": "rprivate", "rslave": "rslave", "rshared": "rshared"}


def runtime_spec(task: TaskSpec, image: ImageConfig, bundle: Bundle, user: User, capabilities: frozenset[str]) -> Doc:
    """``capabilities`` are what the container can be given; `InvalidSpec` for a task that contradicts itself or its image."""
    held = security.granted(task.security, capabilities)
    return {
        "ociVersion": "1.0.2",
        "process": _process(task, image, user, held),
        "root": {"path": str(bundle.rootfs), "readonly": task.security.readonly_rootfs},
        **({} if "uts" in task.security.host_namespaces else {"hostname": hostname(task, bundle)}),
        "mounts": _mounts(task, bundle),
        "annotations": {f"{_LABEL}{key}": value for key, value in task.labels.items()},
        "linux": {
            "cgroupsPath": bundle.cgroup,
            "namespaces": _namespaces(task),
            "resources": resources.resources(task),
            "devices": resources.devices(task),
            "sysctl": dict(task.sysctls),
            **security.kernel_guards(task.security, held, security.architectures(image.arch, bundle.rootfs)),
            **_root_propagation(task.mounts),
        },
    }


def command_line(task: TaskSpec, image: ImageConfig) -> list[str]:
    """As Docker has it: an entrypoint of the task drops the image's command too, and arguments without a command replace it."""
    entrypoint = image.entrypoint if task.entrypoint is None else task.entrypoint
    if task.command:
        command: tuple[str, ...] = (task.command, *task.args)
    elif task.args or task.entrypoint is not None:
        command = task.args
    else:
        command = image.cmd
    argv = [*entrypoint, *command]
    if not argv:
        raise InvalidSpec(f"image {task.image!r} names no command, and neither does the task", hint='set "command" in the task\'s config')
    if any("\0" in part for part in argv):
        raise InvalidSpec("the task's command holds a NUL byte")
    for number, part in enumerate(argv):
        _check_length(part, f"argument {number} of the task's command")
    return argv


def _check_length(text: str, what: str) -> None:
    """More is found out by a runtime only once the container is said to run."""
    if (size := len(os.fsencode(text))) > _LONGEST:
        raise InvalidSpec(
            f"{what} has {size} bytes, and the kernel takes {_LONGEST} at most", hint="put it in a file, such as by a template"
        )


def hostname(task: TaskSpec, bundle: Bundle) -> str:
    if task.network.hostname:
        return task.network.hostname
    return os.uname().nodename if task.network.mode == "host" or "uts" in task.security.host_namespaces else bundle.id[-12:]


def environment(task: TaskSpec, image: ImageConfig, home: str) -> list[str]:
    """The task's over the image's over the two that every program expects."""
    below = dict(entry.split("=", 1) for entry in image.env if "=" in entry)
    merged: Mapping[str, str] = {"PATH": _PATH, "HOME": home, **below, **task.env}
    if any(not name or "=" in name or "\0" in f"{name}{value}" for name, value in merged.items()):
        raise InvalidSpec("an environment variable of the task has a NUL byte, '=' in its name, or no name")
    for name, value in merged.items():
        _check_length(f"{name}={value}", f"environment variable {name!r}")
    return [f"{name}={value}" for name, value in merged.items()]


def _process(task: TaskSpec, image: ImageConfig, user: User, held: frozenset[str]) -> Doc:
    work_dir = task.work_dir or image.work_dir or "/"
    if not work_dir.startswith("/"):
        raise InvalidSpec(f"working directory {work_dir!r} is not absolute", hint='set "work_dir" to a path such as /srv')
    process: Doc = {
        "terminal": False,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
        "args": [*((_INIT, "--") if task.init else ()), *command_line(task, image)],
        "env": environment(task, image, user.home),
        "cwd": work_dir,
        "capabilities": security.capabilities(held),
        **({"noNewPrivileges": True} if task.security.no_new_privileges else {}),  # youki takes a false one for a word on the order
    }
    if task.ulimits:
        process["rlimits"] = [resources.rlimit(ulimit) for ulimit in task.ulimits]
    if task.resources.oom_score_adj:
        process["oomScoreAdj"] = resources.oom_score_adj(task.resources.oom_score_adj)
    return process


def _namespaces(task: TaskSpec) -> list[Doc]:
    kinds: list[Doc] = [{"type": kind} for kind in _NAMESPACES if kind not in task.security.host_namespaces]
    match task.network.mode:
        case "host":
            return kinds
        case "none":
            return [*kinds, {"type": "network"}]
        case "path":
            return [*kinds, {"type": "network", "path": task.network.netns_path}]
        case other:
            raise InvalidSpec(f"network mode {other!r} is none of host, none and path")


def _mounts(task: TaskSpec, bundle: Bundle) -> list[Doc]:
    """Kernel file systems, our three files in /etc, then the task's own in the order of their targets' depth."""
    writable = "rw" if task.security.privileged else "ro"
    quiet = ["nosuid", "noexec", "nodev"]
    mounts: list[Doc] = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": quiet},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        *_ipc_mounts(task, quiet),
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*quiet, writable]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*quiet, "relatime", writable]},
    ]
    if task.init:
        mounts.append({"destination": _INIT, "type": "bind", "source": str(_init_program()), "options": ["bind", "ro"]})
    taken = {os.path.normpath(mount.target) for mount in task.mounts}
    mounts += [
        {"destination": f"/etc/{name}", "type": "bind", "source": str(bundle.etc / name), "options": ["rbind", "rprivate"]}
        for name in ("hosts", "hostname", "resolv.conf")
        if f"/etc/{name}" not in taken
    ]
    return mounts + [_mount(mount) for mount in sorted(task.mounts, key=lambda mount: Path(mount.target).parts)]


def _ipc_mounts(task: TaskSpec, quiet: list[str]) -> list[Doc]:
    """Shared memory and message queues go with the ipc namespace."""
    if "ipc" in task.security.host_namespaces:
        return [
            {"destination": path, "type": "bind", "source": path, "options": ["rbind", *quiet]}
            for path in _IPC_DIRECTORIES
            if os.path.ismount(path)
        ]
    shm, mqueue = _IPC_DIRECTORIES
    return [
        {"destination": shm, "type": "tmpfs", "source": "shm", "options": [*quiet, "mode=1777", f"size={task.shm_bytes}"]},
        {"destination": mqueue, "type": "mqueue", "source": "mqueue", "options": quiet},
    ]


def _init_program() -> Path:
    if not _INIT_PROGRAM.exists():
        raise InvalidSpec(
            "this installation has no init for containers", hint="build zlayer-driver with a C compiler and a static C library"
        )
    return _INIT_PROGRAM


def _mount(mount: Mount) -> Doc:
    if not mount.target.startswith("/") or ".." in Path(mount.target).parts or "\0" in mount.target + mount.source:
        raise InvalidSpec(f"mount target {mount.target!r} is not an absolute path without '..'")
    access = "ro" if mount.read_only else "rw"
    if mount.kind == "tmpfs":
        size = [f"size={mount.size_bytes}"] if mount.size_bytes else []
        mode = [f"mode={mount.mode:o}"] if mount.mode is not None else []
        return {"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", access, *size, *mode]}
    if mount.kind != "bind":
        raise InvalidSpec(f"mount kind {mount.kind!r} is neither bind nor tmpfs")
    if not Path(mount.source).exists():
        raise InvalidSpec(f"{mount.source!r}, to be mounted at {mount.target!r}, does not exist on this node")
    if mount.propagation not in _PROPAGATION:
        raise InvalidSpec(f"mount propagation {mount.propagation!r} is none of {', '.join(_PROPAGATION)}")
    options = ["rbind", _PROPAGATION[mount.propagation], access]
    return {"destination": mount.target, "type": "bind", "source": mount.source, "options": options}


def _root_propagation(mounts: tuple[Mount, ...]) -> dict[str, str]:
    """No mount takes part in more than its root does: it must receive for a slave, and give for a shared one."""
    modes = {mount.propagation for mount in mounts}
    widest = next((mode for mode in ("rshared", "rslave") if mode in modes), "")
    return {"rootfsPropagation": widest} if widest else {}
