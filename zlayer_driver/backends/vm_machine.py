"""The virtual machine of a container: which emulator and accelerator this node has, and QEMU's command line."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zlayer_driver.backends import vm_boot
from zlayer_driver.backends.supervised.bundle import boot_id
from zlayer_driver.backends.vm_boot import AGENT, BootFiles, KernelPackage
from zlayer_driver.errors import Unsupported
from zlayer_driver.host.processes import capture
from zlayer_driver.model import Resources

_QEMU = "qemu-system-x86_64"
_TOOLS = {_QEMU: "qemu-system-x86", "mkfs.erofs": "erofs-utils", "setpriv": "util-linux", "lz4": "lz4"}
_VIRTIOFSD = (Path("/usr/lib/qemu/virtiofsd"), Path("/usr/libexec/virtiofsd"), Path("/usr/lib/virtiofsd"))
_MIB = 1 << 20
_DEFAULT_MEMORY = 512 * _MIB
_GUEST_OVERHEAD = 96 * _MIB  # the kernel, its page tables and the initramfs, beside the container's limit
_SHARES_PER_CPU = 1024
_PROBE_TIMEOUT_S = 3.0
# microvm without a PIC or PIT has no timer under emulation; its virtio devices are found by ACPI. The i8042 and EDD probes only cost time.
_MACHINES = {"microvm": "microvm,pit=on,pic=on,rtc=on,isa-serial=on,pcie=on", "q35": "q35"}
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
        memory = f"{memory_bytes // _MIB}M"
        clock = f" {_EMULATED.format(khz=self.tsc_khz)}" if self.accelerator == "tcg" else ""
        shared = ",memory-backend=memory" if shares else ""
        argv = [
            *(self.qemu, "-name", name, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-monitor", "none"),
            *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
            *("-machine", f"{_MACHINES[self.kind]}{shared}", "-accel", self.accelerator, "-m", memory, "-smp", str(cpus)),
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
    return -(-wanted // _MIB) * _MIB


def cpus(resources: Resources) -> int:
    """At least what the task may use at once, at most what the node has."""
    if resources.cpu_quota_us:
        wanted = -(-resources.cpu_quota_us // resources.cpu_period_us)
    else:
        wanted = -(-resources.cpu_shares // _SHARES_PER_CPU)
    return max(1, min(wanted, len(os.sched_getaffinity(0))))


def check(kernel: str) -> KernelPackage:
    """The kernel that guests boot; `Unsupported` with the cure if that or anything else is not on this node. Quick, and runs nothing."""
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            raise Unsupported(f"{tool} is not installed", hint=f"install {package}")
    if not AGENT.exists():
        raise Unsupported("this installation has no guest agent", hint="build zlayer-driver with a C compiler and a static C library")
    return vm_boot.find_kernel(kernel)


@dataclass(slots=True)
class Machines:
    """Finds this node's machine, and prepares what it boots from below ``directory``. What is found is kept, a failure is not."""

    directory: Path
    kernel: str = ""
    accelerator: str = ""
    kind: str = ""
    _found: Machine | None = field(default=None, init=False)
    _finding: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def find(self) -> Machine:
        """`Unsupported` with the cure, if this node can run no VM."""
        async with self._finding:
            if self._found is None:
                self._found = await self._look()
        return self._found

    async def _look(self) -> Machine:
        files = await asyncio.to_thread(vm_boot.prepare, self.directory, check(self.kernel))
        answer = await capture([_QEMU, "--version"], timeout_s=10)
        words = answer.stdout.decode("utf-8", "replace").split()
        khz = await capture([str(AGENT), "--tsc-khz"], timeout_s=10)
        kind = self.kind or await _best_kind()
        share = next((str(path) for path in _VIRTIOFSD if path.exists()), shutil.which("virtiofsd") or "")
        known: dict[str, Any] = {"version": words[3] if len(words) > 3 else "", "tsc_khz": int(khz.stdout), "share": share}
        machine = Machine(qemu=shutil.which(_QEMU) or _QEMU, kind=kind, accelerator="kvm", files=files, **known)
        if self.accelerator != "kvm" and (self.accelerator or not await self._boots(machine)):
            machine = Machine(qemu=machine.qemu, kind=kind, accelerator="tcg", files=files, **known)
        return machine

    async def _boots(self, machine: Machine) -> bool:
        """Whether a guest gets as far as its agent with KVM: a /dev/kvm that opens proves nothing. Asked once per boot of the node."""
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            return False
        known = self.directory / f"kvm-{boot_id()}"
        if not known.exists():
            known.write_text(str(int(await asyncio.to_thread(_reaches_agent, machine))))
        return known.read_text() == "1"


async def _best_kind() -> str:
    """The leanest machine that this QEMU was built with."""
    answer = await capture([_QEMU, "-machine", "help"], timeout_s=10)
    names = {line.split(b" ", 1)[0].decode() for line in answer.stdout.splitlines()}
    return next((kind for kind in _MACHINES if kind in names), "q35")


def _reaches_agent(machine: Machine) -> bool:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = machine.command("probe", disk=Path("/dev/null"), memory_bytes=128 * _MIB, cpus=1, shares=False)
        command = [part.replace("{control}", str(theirs.fileno())) for part in argv]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, pass_fds=(theirs.fileno(),)) as probe:
            theirs.close()
            ours.settimeout(_PROBE_TIMEOUT_S)
            try:
                return bool(ours.recv(1))
            except (TimeoutError, ConnectionError):
                return False
            finally:
                probe.kill()
