"""Containers in a QEMU virtual machine each, on the same images, bundles and supervisor as those of an OCI runtime."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from zlayer_driver.backends import Context, vm_exec, vm_guest, vm_usage
from zlayer_driver.backends.stored_images import Images
from zlayer_driver.backends.supervised.backend import Supervised
from zlayer_driver.backends.supervised.bundle import Bundle, Record
from zlayer_driver.backends.supervised.making import Step
from zlayer_driver.backends.supervised.users import resolve
from zlayer_driver.backends.vm_disk import disk_of
from zlayer_driver.backends.vm_node import Machines, check
from zlayer_driver.backends.vm_runtime import VmRuntime
from zlayer_driver.backends.vm_steps import VM_STEPS, limit
from zlayer_driver.config import PluginConfig
from zlayer_driver.errors import InvalidSpec, NotFound, Unsupported
from zlayer_driver.guest.frames import Kind, fields
from zlayer_driver.model import ExecResult, Fingerprint, Handle, Health, Resources, TaskSpec
from zlayer_driver.readings import ExecEvent, ExecInput, ExecOptions, GuestOverlay, OverlayKind, Usage, UsageSample

_INTERVAL_S = 1.0


def make(context: Context) -> VmBackend:
    """The backend of the operator's config."""
    root = context.state_dir / "vm"
    return VmBackend(root=root, store=context.store, machines=Machines(root / "boot", context.config.vm_kernel))


def missing(config: PluginConfig) -> str:
    """What a VM needs and this node lacks, with the cure."""
    try:
        check(config.vm_kernel)
    except Unsupported as error:
        return str(error)
    return ""


class VmBackend(Supervised):
    """``machines`` finds what a guest runs on."""

    def __init__(self, *, root: Path, store: Images, machines: Machines, steps: tuple[Step, ...] = VM_STEPS) -> None:
        super().__init__(name="vm", root=root, store=store, steps=steps)
        self._machines = machines

    async def _runtime_for(self, spec: TaskSpec) -> VmRuntime:
        if spec.oci_runtime:
            raise Unsupported("a VM has no OCI runtime", hint="take oci_runtime out of the task's config")
        return VmRuntime(machine=await self._machines.find())

    def _runtime_of(self, record: Record) -> VmRuntime:
        return VmRuntime(record.runtime)

    async def probe(self) -> Fingerprint:
        base = await super().probe()
        if base.health is not Health.HEALTHY:
            return base
        try:
            machine = await self._machines.find()
        except Unsupported as error:
            return Fingerprint(Health.UNDETECTED, str(error))
        known = {
            "qemu.version": machine.version,
            "machine": machine.kind,
            "accelerator": machine.accelerator,
            "kernel": machine.files.release,
        }
        how = "by KVM" if machine.accelerator == "kvm" else "emulated, which is slow: no guest boots by KVM here"
        return replace(base, description=f"QEMU {machine.version}, {how}", attributes={**base.attributes, **known})

    async def sweep(self, *, orphans_after_s: float | None = None) -> None:
        """As its base, and takes away the disks of images that are gone."""
        await super().sweep(orphans_after_s=orphans_after_s)
        kept = {disk_of(self._root, record.digest or "") for record in await self.list_images()}
        for disk in (self._root / "disks").glob("*.erofs"):
            if disk not in kept:
                disk.unlink(missing_ok=True)

    async def exec(self, handle: Handle, argv: Sequence[str], *, timeout_s: float, options: ExecOptions | None = None) -> ExecResult:
        bundle = self._running(handle).bundle
        payload = self._payload(bundle, argv, options or ExecOptions(), tty=False)
        return await vm_exec.execute(bundle, payload, name=argv[0], timeout_s=timeout_s)

    async def stream_exec(
        self, handle: Handle, argv: Sequence[str], *, tty: bool, stdin: AsyncIterator[ExecInput] | None = None
    ) -> AsyncIterator[ExecEvent]:
        bundle = self._running(handle).bundle
        return vm_exec.stream(bundle, self._payload(bundle, argv, ExecOptions(), tty=tty), stdin, tty=tty)

    async def pause(self, handle: Handle) -> None:
        await self._change(handle, [("z", "1")])

    async def resume(self, handle: Handle) -> None:
        await self._change(handle, [("z", "0")])

    async def update(self, handle: Handle, resources: Resources) -> Sequence[str]:
        """Within the machine, whose size it keeps, and of its place on the node."""
        await asyncio.to_thread(limit, self._running(handle).bundle, resources)
        await self._change(handle, vm_guest.limits(resources))
        return ()

    def overlay_kind(self) -> OverlayKind:
        return OverlayKind.GUEST_MANAGED

    async def push_overlay(self, handle: Handle, overlay: GuestOverlay) -> None:
        await self._change(handle, vm_guest.overlay(overlay))

    async def usage(self, handle: Handle) -> Usage:
        used = await vm_usage.read(self._running(handle).bundle)
        return Usage(used.cpu_us, used.memory_bytes, used.memory_limit_bytes)

    async def stream_usage(self, handle: Handle) -> AsyncIterator[UsageSample]:
        self._running(handle)
        return self._samples(handle)

    async def _samples(self, handle: Handle) -> AsyncIterator[UsageSample]:
        container = self._watched(handle)
        while not container.ended:
            with suppress(NotFound):
                yield vm_usage.sample(await vm_usage.read(container.bundle))
            with suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL_S):
                    await container.wait()

    def _payload(self, bundle: Bundle, argv: Sequence[str], options: ExecOptions, *, tty: bool) -> bytes:
        user = resolve(bundle.rootfs, options.user) if options.user else None
        told = {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)} if user else None
        return vm_guest.command(bundle, argv, options, told, tty=tty)

    async def _change(self, handle: Handle, changes: Iterable[tuple[str, str]]) -> None:
        answer = await vm_exec.call(self._running(handle).bundle, Kind.CHANGE, fields(changes))
        if answer.kind is Kind.FAILED:
            number, what = answer.failure()
            raise InvalidSpec(f"the VM of {handle.task_id!r} cannot {what}: {os.strerror(number)}")
