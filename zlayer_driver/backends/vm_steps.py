"""The steps of making a container in a VM: the shared ones, with a disk, the host's directories and a guest between them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

from zlayer_driver.backends import vm_guest, vm_network
from zlayer_driver.backends.supervised import resources
from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.backends.supervised.making import Making, Step
from zlayer_driver.backends.supervised.spec import hostname
from zlayer_driver.backends.supervised.steps import CONFIG, CONTAINER, DIRECTORY, ROOTFS, RUN, end_strays, nothing, remove_container
from zlayer_driver.backends.vm_disk import disk_of, make_disk
from zlayer_driver.backends.vm_machine import Machine, cpus, memory_bytes
from zlayer_driver.backends.vm_runtime import VmRuntime
from zlayer_driver.errors import InternalError
from zlayer_driver.host import cgroups, mounts, steering
from zlayer_driver.model import Resources

_BOOT_SHARES = 1024  # of a process that nobody has limited
_BOOT_TIMEOUT_S = 50.0  # below what a supervisor gives its runtime
_BIND, _RECURSIVE = 4096, 16384


async def _make_disk(making: Making) -> None:
    await asyncio.to_thread(make_disk, making.image, making.bundle)


async def _bind_shares(making: Making) -> None:
    if shared := vm_guest.shared(making.task):
        await asyncio.to_thread(_bind, [Path(mount.source) for mount in shared], making.bundle.dir / "share")


def _bind(sources: list[Path], share: Path) -> None:
    """Each under its number in one directory, so that one daemon has them all."""
    share.mkdir(0o700)
    for number, source in enumerate(sources):
        target = share / str(number)
        target.mkdir() if source.is_dir() else target.touch()
        mounts.mount(str(source), target, "", _BIND | _RECURSIVE)


async def _unbind_shares(bundle: Bundle) -> None:
    for target in sorted((bundle.dir / "share").glob("*")):
        await asyncio.to_thread(mounts.unmount, target)


async def _make_cgroup(making: Making) -> None:
    await asyncio.to_thread(limit, making.bundle, _while_it_boots(making.task.resources))


def _while_it_boots(wanted: Resources) -> Resources:
    """A boot is two seconds of work, which a small share of a busy node would make minutes of."""
    return replace(wanted, cpu_shares=_BOOT_SHARES if wanted.cpu_shares else 0)


async def _hold(making: Making) -> None:
    await asyncio.to_thread(limit, making.bundle, making.task.resources)


def limit(bundle: Bundle, wanted: Resources) -> list[Path]:
    """What the node holds the VM to beside its size, in groups that the monitor enters with all it starts."""
    cpu = resources.limits(wanted).get("cpu", {})
    return cgroups.make(bundle.cgroup, cpu_shares=cpu.get("shares", 0), cpuset_cpus=cpu.get("cpus", ""))


async def _remove_cgroup(bundle: Bundle) -> None:
    await cgroups.remove(bundle.cgroup)


def _machine(making: Making) -> tuple[Machine, float]:
    if not isinstance(making.runtime, VmRuntime) or making.runtime.machine is None:
        raise InternalError("a VM is made by a machine")
    return making.runtime.machine, making.runtime.hang_timeout_s


async def _describe_guest(making: Making) -> None:
    bundle, task = making.bundle, making.task
    machine, hang_timeout_s = _machine(making)
    shares = bool(vm_guest.shared(task))
    link = vm_network.link_of(making)
    qemu = machine.command(
        bundle.id,
        disk=disk_of(making.bundle.root, making.image.digest),
        memory_bytes=memory_bytes(task.resources),
        cpus=cpus(task.resources),
        shares=shares,
        network=(vm_network.backend(making), link.mac) if link else (),
    )
    plan = {
        "qemu": [*(steering.entering(task.network.netns_path) if task.network.mode == "path" else ()), *qemu],
        "virtiofsd": machine.share_command(bundle.dir / "share") if shares else [],
        "groups": [str(group) for group in await asyncio.to_thread(limit, bundle, _while_it_boots(task.resources))],
        "boot_timeout_s": _BOOT_TIMEOUT_S,
        "hang_timeout_s": hang_timeout_s,
    }
    (bundle.dir / "vm.json").write_text(json.dumps(plan))
    (bundle.dir / "guest.setup").write_bytes(vm_guest.setup(task, bundle, hostname(task, bundle), link))
    (bundle.dir / "guest.start").write_bytes(vm_guest.start(vm_guest.process(bundle)))


async def _remove_vm(bundle: Bundle) -> None:
    """QEMU and the daemon die with the monitor; that they have is seen here."""
    await remove_container(bundle)
    await end_strays(bundle)


VM_STEPS = (
    DIRECTORY,
    ROOTFS,
    CONFIG,
    Step("disk", _make_disk, nothing),
    Step("shares", _bind_shares, _unbind_shares),
    Step("network", vm_network.join, vm_network.leave),
    Step("cgroup", _make_cgroup, _remove_cgroup),
    Step("guest", _describe_guest, nothing),
    replace(CONTAINER, undo=_remove_vm),
    Step("limits", _hold, nothing),
    RUN,
)
