"""The virtual machine of a container: its size, and the command lines of QEMU and of the daemon for the host's directories."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zlayer_driver.backends.vm_boot import BootFiles
from zlayer_driver.errors import Unsupported
from zlayer_driver.model import Resources

MIB = 1 << 20
_DEFAULT_MEMORY = 512 * MIB
_GUEST_OVERHEAD = 96 * MIB  # the kernel, its page tables and the initramfs, beside the container's limit
_SHARES_PER_CPU = 1024
# microvm without a PIC or PIT has no timer under emulation; its virtio devices are found by ACPI. The i8042 and EDD probes only cost time.
KINDS = {"microvm": "microvm,pit=on,pic=on,rtc=on,isa-serial=on,pcie=on", "q35": "q35"}
_COMMAND_LINE = "console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=on mitigations=off edd=off i8042.noaux i8042.nokbd"
_EMULATED = "tsc=reliable no_timer_check tsc_early_khz={khz}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """``tsc_khz`` is the frequency of the node's time stamp counter; ``share`` the daemon for its directories, if it has one."""

    qemu: str
    version: str
    kind: str
    accelerator: str
    files: BootFiles
    tsc_khz: int
    share: str = ""

    def command(self, name: str, *, disk: Path, memory_bytes: int, cpus: int, shares: bool, network: Sequence[str] = ()) -> list[str]:
        """QEMU's. ``network`` is a ``-netdev`` backend with the guest's MAC, or nothing. ``{control}`` stands for the fd of the agent's port. A share's daemon listens at ``share.sock`` of the working directory."""
        bus = "device" if self.kind == "microvm" else "pci"
        memory = f"{memory_bytes // MIB}M"
        clock = f" {_EMULATED.format(khz=self.tsc_khz)}" if self.accelerator == "tcg" else ""
        shared = ",memory-backend=memory" if shares else ""
        argv = [
            *(self.qemu, "-name", name, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-monitor", "none"),
            *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
            *("-machine", f"{KINDS[self.kind]}{shared}", "-accel", self.accelerator, "-m", memory, "-smp", str(cpus)),
            *("-kernel", str(self.files.kernel), "-initrd", str(self.files.initrd), "-append", f"{_COMMAND_LINE}{clock}"),
            *("-serial", "stdio", "-chardev", "socket,id=control,fd={control}"),
            *("-device", f"virtio-serial-{bus}", "-device", "virtserialport,chardev=control,name=zlayer"),
            *("-drive", f"id=root,file={_escaped(disk)},format=raw,if=none,readonly=on", "-device", f"virtio-blk-{bus},drive=root"),
        ]
        if self.accelerator == "kvm":
            argv += ["-cpu", "host"]
        if shares:
            argv += ["-object", f"memory-backend-memfd,id=memory,size={memory},share=on"]
            argv += ["-chardev", "socket,id=share,path=share.sock", "-device", "vhost-user-fs-pci,chardev=share,tag=zlayer"]
        if network:
            backend, mac = network
            argv += ["-netdev", f"{backend},id=net", "-device", f"virtio-net-{bus},netdev=net,mac={mac}"]
        return argv

    def share_command(self, directory: Path) -> list[str]:
        if not self.share:
            raise Unsupported("this node has no virtiofsd, so a VM cannot see its directories", hint="install virtiofsd")
        return [self.share, "-f", "--fd={control}", "-o", f"source={directory}", "-o", "sandbox=chroot", "-o", "cache=auto"]


def _escaped(path: Path) -> str:
    """As the value of a QEMU option, in which a comma ends it."""
    return str(path).replace(",", ",,")


def memory_bytes(resources: Resources) -> int:
    """What the machine gets: the task's limit and the guest's own need, in whole MiB."""
    wanted = (resources.memory_bytes or _DEFAULT_MEMORY) + _GUEST_OVERHEAD
    return -(-wanted // MIB) * MIB


def cpus(resources: Resources) -> int:
    """At least what the task may use at once, at most what the node has."""
    if resources.cpu_quota_us:
        wanted = -(-resources.cpu_quota_us // resources.cpu_period_us)
    else:
        wanted = -(-resources.cpu_shares // _SHARES_PER_CPU)
    return max(1, min(wanted, len(os.sched_getaffinity(0))))
