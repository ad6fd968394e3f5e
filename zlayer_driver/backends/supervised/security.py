"""What a container may not do: capabilities, masked paths, and the system call filter."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

from zlayer_driver.backends.supervised import seccomp
from zlayer_driver.errors import InvalidSpec
from zlayer_driver.host.rootfs import exists_in
from zlayer_driver.model import Security

Doc = dict[str, Any]

# <linux/capability.h>, in the order of their bits.
CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ]
)

# The set that Docker and its kin give, so that images find what they were built for.
DEFAULT_CAPABILITIES = frozenset(
    f"CAP_{name}"
    for name in [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "SYS_CHROOT",
        "MKNOD",
        "AUDIT_WRITE",
        "SETFCAP",
    ]
)

# Files that tell of, or reach into, the whole machine.
_MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/dev/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# By machine: its own system calls, those of its 32-bit kin, and the loaders that programs of that kin need.
_ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", ("/lib/ld-linux.so.2", "/lib/ld-musl-i386.so.1")),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", ("/lib/ld-linux-armhf.so.3", "/lib/ld-musl-armhf.so.1")),
}
_NARROW = ("386", "arm")  # images that are 32-bit as a whole


def architectures(image_arch: str, rootfs: Path) -> tuple[str, ...]:
    """Whose system calls the filter knows; a program of any other is killed.

    Compiling the filter for the 32-bit kin takes a quarter of a start, so only an image that is 32-bit, or has a 32-bit loader, pays for it.
    """
    if platform.machine() not in _ARCHITECTURES:
        return ()
    own, kin, loaders = _ARCHITECTURES[platform.machine()]
    wanted = image_arch in _NARROW or any(exists_in(rootfs, loader) for loader in loaders)
    return (own, kin) if wanted else (own,)


def capabilities(held: frozenset[str]) -> Doc:
    """The three sets that matter to a program that does not know of capabilities; nothing is inheritable or ambient."""
    return {kind: sorted(held) for kind in ("bounding", "effective", "permitted")}


def granted(security: Security, ours: frozenset[str]) -> frozenset[str]:
    """Of those that are ours to give; `InvalidSpec` for a name that is no capability, or one that is not ours."""
    added, dropped = _named(security.cap_add), _named(security.cap_drop)
    if security.privileged or "CAP_ALL" in added:
        return ours - dropped if "CAP_ALL" not in dropped else added - {"CAP_ALL"}
    if missing := sorted(added - ours):
        raise InvalidSpec(f"this node cannot give {', '.join(missing)}: the driver does not have it itself", hint="take it out of cap_add")
    kept = frozenset() if "CAP_ALL" in dropped else DEFAULT_CAPABILITIES - dropped
    return (kept | added) & ours


def kernel_guards(security: Security, held: frozenset[str], known: tuple[str, ...]) -> Doc:
    """The parts of the spec's ``linux`` object that fence the container in; nothing for a privileged one."""
    if security.privileged:
        return {}
    guards: Doc = {"maskedPaths": list(_MASKED), "readonlyPaths": list(_READ_ONLY)}
    if security.seccomp != "unconfined":
        guards["seccomp"] = seccomp.read(security.seccomp) if security.seccomp else seccomp.profile(held, known)
    return guards


def is_capability(name: str) -> bool:
    """Whether it names one, or all, in any case and with or without ``CAP_``."""
    return _full(name) in {*CAPABILITIES, "CAP_ALL"}


def _full(name: str) -> str:
    return f"CAP_{name.upper().removeprefix('CAP_')}"


def _named(names: tuple[str, ...]) -> frozenset[str]:
    full = frozenset(map(_full, names))
    if unknown := sorted(name for name in full if not is_capability(name)):
        raise InvalidSpec(f"{', '.join(unknown)} is no capability", hint='use names such as "net_admin"')
    return full


@cache
def own_capabilities() -> frozenset[str]:
    """The driver's bounding set: proc(5), status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd:"))
    bits = int(line.split()[1], 16)
    return frozenset(name for bit, name in enumerate(CAPABILITIES) if bits >> bit & 1)
