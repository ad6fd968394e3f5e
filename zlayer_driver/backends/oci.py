"""Containers by an OCI runtime (crun, runc, youki, gVisor's runsc) under conmon, on overlayfs root file systems."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from zlayer_driver.backends import Context
from zlayer_driver.backends.oci_entry import Entry
from zlayer_driver.backends.oci_exec import Command, RuntimeExec, execute, process_of, stream
from zlayer_driver.backends.oci_runtime import GVISOR, SHARE_THE_KERNEL, OciRuntime
from zlayer_driver.backends.oci_runtimes import Runtimes
from zlayer_driver.backends.oci_steps import STEPS
from zlayer_driver.backends.stored_images import Images
from zlayer_driver.backends.supervised.backend import Supervised
from zlayer_driver.backends.supervised.bundle import Record
from zlayer_driver.backends.supervised.making import Step
from zlayer_driver.backends.supervised.resources import limits
from zlayer_driver.backends.supervised.runtime import last_error
from zlayer_driver.backends.supervised.usage import sample, samples
from zlayer_driver.errors import ConfigError, InvalidSpec, Unsupported
from zlayer_driver.host import cgroups
from zlayer_driver.host.enter import is_usable
from zlayer_driver.host.seccomp_filter import Uncompiled
from zlayer_driver.model import ExecResult, Fingerprint, Handle, Health, Resources, TaskSpec
from zlayer_driver.readings import ExecEvent, ExecInput, ExecOptions, Usage, UsageSample


def make(context: Context) -> OciBackend:
    """The backend of the operator's config."""
    return OciBackend(
        root=context.state_dir / "oci",
        store=context.store,
        runtimes=Runtimes(context.config.oci_runtime, context.config.allow_oci_runtimes),
    )


class OciBackend(Supervised):
    """``runtimes`` chooses for each task."""

    def __init__(self, *, root: Path, store: Images, runtimes: Runtimes | None = None, steps: tuple[Step, ...] = STEPS) -> None:
        super().__init__(name="oci", root=root, store=store, steps=steps)
        self._runtimes = runtimes or Runtimes()

    async def _runtime_for(self, spec: TaskSpec) -> OciRuntime:
        return await self._runtimes.select(spec.oci_runtime)

    def _runtime_of(self, record: Record) -> OciRuntime:
        return OciRuntime(record.runtime, record.kind)

    async def probe(self) -> Fingerprint:
        base = await super().probe()
        if base.health is not Health.HEALTHY:
            return base
        try:
            runtime = await self._runtimes.select()
        except (ConfigError, Unsupported) as error:
            return Fingerprint(Health.UNDETECTED, str(error))
        usable, refused = await self._runtimes.survey()
        versions = {f"runtime.{each.name}.version": each.version for each in usable}
        attributes = {"runtime": runtime.name, "runtime.version": runtime.version, **versions, **base.attributes}
        return replace(base, description="; ".join([f"{runtime.name} {runtime.version}", *refused]), attributes=attributes)

    async def exec(self, handle: Handle, argv: Sequence[str], *, timeout_s: float, options: ExecOptions | None = None) -> ExecResult:
        return await execute(self._command(handle, argv, options or ExecOptions()), timeout_s=timeout_s)

    async def stream_exec(
        self, handle: Handle, argv: Sequence[str], *, tty: bool, stdin: AsyncIterator[ExecInput] | None = None
    ) -> AsyncIterator[ExecEvent]:
        return stream(self._command(handle, argv, ExecOptions(), tty=tty), stdin, tty=tty)

    def _command(self, handle: Handle, argv: Sequence[str], options: ExecOptions, *, tty: bool = False) -> Command:
        container = self._running(handle)
        bundle, runtime = container.bundle, self._runtime_of(container.record)
        spec = json.loads(bundle.config.read_bytes())
        process = process_of(spec, bundle.rootfs, argv, options, tty=tty)
        if runtime.kind in SHARE_THE_KERNEL and is_usable():
            with suppress(Uncompiled):
                return Entry(container, spec["linux"], process)
        asyncio.get_running_loop().run_in_executor(None, cgroups.awaken)
        return RuntimeExec(bundle, runtime, process)

    async def pause(self, handle: Handle) -> None:
        await self._told(handle, "pause")

    async def resume(self, handle: Handle) -> None:
        await self._told(handle, "resume")

    async def update(self, handle: Handle, resources: Resources) -> Sequence[str]:
        """All or nothing is changed, so there is nothing to warn of. `Unsupported` where the runtime has no such verb."""
        container = self._running(handle)
        if container.record.kind == GVISOR:
            raise Unsupported("gVisor cannot change the limits of a container that runs", hint="start the task again with other limits")
        changes = container.bundle.dir / "update.json"
        changes.write_text(json.dumps(limits(resources)))
        await self._told(handle, "update", "--resources", str(changes))
        return ()

    async def _told(self, handle: Handle, *verb: str) -> None:
        """`InvalidSpec` in the runtime's words where it refuses."""
        container = self._running(handle)
        runtime, bundle = self._runtime_of(container.record), container.bundle
        log = bundle.dir / f"{verb[0]}.log"
        done = await runtime.run(bundle, *verb, bundle.id, log=log)
        if done.status != 0:
            raise InvalidSpec(f"{runtime.name} cannot {verb[0]} container {bundle.id!r}: {last_error(log)}")

    async def usage(self, handle: Handle) -> Usage:
        return sample(self._watched(handle)).usage

    async def stream_usage(self, handle: Handle) -> AsyncIterator[UsageSample]:
        return samples(self._watched(handle))
