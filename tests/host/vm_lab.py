"""What the tests of the VM backend share; images, specs and the look at what is left are the OCI backend's."""

from __future__ import annotations

from pathlib import Path

from tests.host.oci_lab import OneImage, remains
from zlayer_driver.backends.supervised.bundle import Bundle, container_id
from zlayer_driver.backends.supervised.making import Step, remove
from zlayer_driver.backends.vm import VmBackend
from zlayer_driver.backends.vm_node import Machines
from zlayer_driver.backends.vm_steps import VM_STEPS
from zlayer_driver.host.processes import command_lines
from zlayer_driver.model import Handle, Target

MACHINES = ("linux", "root", "conmon", "busybox", "qemu-system-x86_64", "mkfs.erofs")


def machines(root: Path, kind: str = "") -> Machines:
    """Emulated, so that no test depends on whether the node's KVM works. What they boot from is made once for all tests of a run."""
    return Machines(root / "boot", accelerator="tcg", kind=kind)


def backend(root: Path, images: OneImage, found: Machines, *, steps: tuple[Step, ...] = VM_STEPS) -> VmBackend:
    return VmBackend(root=root / "state", store=images, machines=found, steps=steps)


def bundle_of(root: Path, task_id: str) -> Bundle:
    return Bundle(root / "state", container_id(task_id))


async def clear(root: Path) -> list[str]:
    """What is left of VMs, and an end to it."""
    found = remains(root)
    for path in root.glob("state/c/*"):
        await remove(Bundle(root / "state", path.name), VM_STEPS)
    return found


def child_of(root: Path, task: Handle, name: str) -> int:
    """The pid of the process of a task's VM whose program's name holds ``name``: it works in the container's directory, which no other test has."""
    work = bundle_of(root, task.task_id).dir
    return next(pid for pid, argv in command_lines() if name.encode() in argv[0] and _works_in(pid, work))


def _works_in(pid: int, directory: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").samefile(directory)
    except FileNotFoundError:
        return False


def handle(task_id: str, data: object) -> Handle:
    return Handle(task_id, Target.DELEGATE, "vm", data if isinstance(data, dict) else {})
