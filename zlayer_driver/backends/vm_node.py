"""What this node runs its VMs by: which emulator, accelerator and kernel it has, and whether they work."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zlayer_driver.backends import vm_boot
from zlayer_driver.backends.supervised.bundle import boot_id
from zlayer_driver.backends.vm_boot import AGENT, KernelPackage
from zlayer_driver.backends.vm_machine import KINDS, MIB, Machine
from zlayer_driver.errors import Unsupported
from zlayer_driver.host.processes import capture

_QEMU = "qemu-system-x86_64"
_TOOLS = {_QEMU: "qemu-system-x86", "mkfs.erofs": "erofs-utils", "setpriv": "util-linux", "lz4": "lz4"}
_VIRTIOFSD = (Path("/usr/lib/qemu/virtiofsd"), Path("/usr/libexec/virtiofsd"), Path("/usr/lib/virtiofsd"))
_PROBE_TIMEOUT_S = 3.0


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
    return next((kind for kind in KINDS if kind in names), "q35")


def _reaches_agent(machine: Machine) -> bool:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = machine.command("probe", disk=Path("/dev/null"), memory_bytes=128 * MIB, cpus=1, shares=False)
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
