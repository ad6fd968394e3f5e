"""The steps of making a container in a VM: the shared ones, with a disk, the host's directories and a guest between them."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from zlayer_driver.backends import vm_guest
from zlayer_driver.backends.supervised import resources
from zlayer_driver.backends.supervised.bundle import Bundle, Record
from zlayer_driver.backends.supervised.making import Making, Step
from zlayer_driver.backends.supervised.security import CAPABILITIES
from zlayer_driver.backends.supervised.spec import hostname
from zlayer_driver.backends.supervised.steps import CONFIG, CONTAINER, DIRECTORY, ROOTFS, RUN, end_strays, nothing, remove_container
from zlayer_driver.backends.vm_exec import call
from zlayer_driver.backends.vm_machine import Machine, cpus, memory_bytes
from zlayer_driver.errors import CreateFailed, InternalError, NotFound
from zlayer_driver.guest.frames import Kind
from zlayer_driver.host import cgroups, mounts, steering
from zlayer_driver.host.pidfd import PidFd
from zlayer_driver.host.steering import Link, Route
from zlayer_driver.image.values import Image
from zlayer_driver.model import Resources

_BOOT_SHARES = 1024  # of a process that nobody has limited
_BOOT_TIMEOUT_S = 50.0  # below what a supervisor gives its runtime
_HANG_TIMEOUT_S = 60.0
_MONITOR = ("-I", "-m", "zlayer_driver.guest.monitor")
_BIND, _RECURSIVE = 4096, 16384


@dataclass(frozen=True, slots=True)
class VmRuntime:
    """The monitor in the place of an OCI runtime: it knows ``create`` as a command, and a start as a call.

    ``hang_timeout_s`` is for a guest that answers nothing. ``machine`` is needed to make a container, not to speak with one.
    """

    path: str = sys.executable
    machine: Machine | None = None
    hang_timeout_s: float = _HANG_TIMEOUT_S

    @property
    def name(self) -> str:
        return "the VM"

    @property
    def capabilities(self) -> frozenset[str]:
        """All of its own kernel, whatever the driver has of the node's."""
        return frozenset(CAPABILITIES)

    @property
    def kind(self) -> str:
        return "vm"

    def options(self, _bundle: Bundle, log: Path | None = None) -> tuple[str, ...]:
        return (*_MONITOR, *(("--log", str(log)) if log else ()))

    async def start(self, bundle: Bundle, _init: PidFd | None, _log: Path) -> str:
        try:
            answer = await call(bundle, Kind.START)
        except NotFound as error:
            return str(error)
        if answer.kind is Kind.DONE:
            return ""
        number, what = answer.failure()
        told = f"exec: {os.strerror(number)}" if what == "execute" else f"the guest cannot {what}: {os.strerror(number)}"
        return told.lower()

    async def signal(self, _bundle: Bundle, init: PidFd, number: int) -> bool:
        """The monitor passes it on."""
        return init.send(number)

    async def ran(self, bundle: Bundle, _record: Record) -> bool:
        """The monitor says so before it lets the container run."""
        return bundle.started.exists()


def _machine(making: Making) -> tuple[Machine, float]:
    if not isinstance(making.runtime, VmRuntime) or making.runtime.machine is None:
        raise InternalError("a VM is made by a machine")
    return making.runtime.machine, making.runtime.hang_timeout_s


def disk_of(root: Path, digest: str) -> Path:
    return root / "disks" / f"{digest.removeprefix('sha256:')}.erofs"


# disk


async def _make_disk(making: Making) -> None:
    await asyncio.to_thread(_disk, making.image, making.bundle)


def _disk(image: Image, bundle: Bundle) -> None:
    """The image as a read-only block image, once for all its containers; whoever comes second waits for the first."""
    disk = disk_of(bundle.root, image.digest)
    disk.parent.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(disk.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if disk.exists():
            return
        half = disk.with_suffix(".half")
        half.unlink(missing_ok=True)
        command = ["mkfs.erofs", "-T0", "--quiet", str(half), str(bundle.rootfs)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode != 0:
            raise CreateFailed(bundle.id, f"its image cannot be made into a disk: {done.stderr.decode('utf-8', 'replace').strip()}")
        half.rename(disk)
    finally:
        os.close(lock)


# shares


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


# network


async def _join_network(making: Making) -> None:
    """The record comes first, so that whatever is begun is found again."""
    network, directory = making.task.network, making.bundle.dir
    if network.mode == "path":
        link = await steering.find(network.netns_path)
        (directory / "link.json").write_text(json.dumps({"netns": network.netns_path, "link": asdict(link)}))
        await steering.steer(network.netns_path, link, _tap(making.bundle), directory / "steering")


async def _leave_network(bundle: Bundle) -> None:
    if found := _joined(bundle):
        await steering.release(*found, _tap(bundle))


def _tap(bundle: Bundle) -> str:
    """A name of its own, so that nobody takes another's away; the most that a link's name may have."""
    return f"zl-{bundle.id[-12:]}"


def _joined(bundle: Bundle) -> tuple[str, Link] | None:
    """The network namespace, and its link."""
    try:
        found = json.loads((bundle.dir / "link.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    link = found["link"]
    return found["netns"], Link(**link | {"routes": tuple(Route(**route) for route in link["routes"])})


def _link(making: Making) -> Link | None:
    """For the guest's eth0."""
    if making.task.network.mode == "host":
        return vm_guest.USER_NET
    found = _joined(making.bundle)
    return found[1] if found else None


# cgroup


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


# guest


async def _describe_guest(making: Making) -> None:
    bundle, task = making.bundle, making.task
    machine, hang_timeout_s = _machine(making)
    shares = bool(vm_guest.shared(task))
    link = _link(making)
    qemu = machine.command(
        bundle.id,
        disk=disk_of(making.bundle.root, making.image.digest),
        memory_bytes=memory_bytes(task.resources),
        cpus=cpus(task.resources),
        shares=shares,
        network=(_backend(making), link.mac) if link else (),
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


def _backend(making: Making) -> str:
    """QEMU's for the guest's eth0."""
    return "user" if making.task.network.mode == "host" else f"tap,ifname={_tap(making.bundle)},script=no,downscript=no"


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
    Step("network", _join_network, _leave_network),
    Step("cgroup", _make_cgroup, _remove_cgroup),
    Step("guest", _describe_guest, nothing),
    replace(CONTAINER, undo=_remove_vm),
    Step("limits", _hold, nothing),
    RUN,
)
