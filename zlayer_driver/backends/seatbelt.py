"""macOS containers in a sandbox: a process of the node on a clone of its image's files, by sandbox-exec(1) and the ``cp`` of macOS.

::

    cp -c -R -p LAYER/. ROOTFS
    sandbox-exec -f PROFILE -D ROOTFS=PATH [-D MOUNT0=PATH]… COMMAND [ARG…]

sandbox-exec is deprecated and in every macOS up to 26. It becomes the command; it ends with 65 where it refuses its profile, and with 71
where it can apply none or finds no command. ``cp -c`` clones by clonefile(2), so a root file system costs no room until it is written to.

There is no chroot: the process sees the node's paths, finds its image at ``$ZLAYER_ROOTFS``, and looks for commands there before it does in
the node's own system. A mount is a link at its target to its source, and variables that name the target name the source.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from zlayer_driver.backends import Context, seatbelt_process, seatbelt_rootfs
from zlayer_driver.backends.seatbelt_profile import parameters, profile
from zlayer_driver.backends.stored_images import Images, StoredImages
from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.backends.tool import Interactive, Metered, Tool
from zlayer_driver.backends.tool_exec import ToolExec
from zlayer_driver.backends.tool_job import KEEPER, Command, Job
from zlayer_driver.backends.tool_spec import refuse_all_but
from zlayer_driver.errors import CreateFailed, NotFound, Unsupported
from zlayer_driver.host.processes import capture
from zlayer_driver.model import Handle, TaskSpec
from zlayer_driver.readings import ExecOptions, OverlayKind, UsageSample

_TOOL = Tool("sandbox-exec", hint="it is a part of macOS: put /usr/bin on the PATH")
_ABLE = ("user", "work_dir", "read-only mounts", "network mode")
_NOT_EXECUTED = 71
_PROBE = ("/usr/bin/true",)


def make(context: Context) -> SeatbeltBackend:
    """The backend of the operator's config."""
    return SeatbeltBackend(root=context.state_dir / "seatbelt", store=context.store)


class SeatbeltBackend(StoredImages, Interactive, Metered):
    def __init__(self, *, root: Path, store: Images) -> None:
        StoredImages.__init__(self, store)
        Interactive.__init__(self, name="seatbelt", root=root, tool=_TOOL)

    def overlay_kind(self) -> OverlayKind:
        return OverlayKind.HOST_PROXY

    async def _version(self) -> str:
        """It tells none; that a sandbox works is what counts."""
        await self._tool.ask("-p", "(version 1)(allow default)", *_PROBE, failed=Unsupported)
        return ""

    async def _make(self, spec: TaskSpec, bundle: Bundle) -> Command:
        refuse_all_but(spec, _ABLE, backend="sandbox-exec")
        with self._store.hold():
            image = await asyncio.to_thread(self._store.get, spec.image)
            await seatbelt_rootfs.clone(image.layers, bundle.rootfs)
        await asyncio.to_thread(seatbelt_rootfs.place, bundle.rootfs, spec.mounts)
        process = await asyncio.to_thread(seatbelt_process.describe, spec, image.config, bundle.rootfs)
        (bundle.dir / "profile.sb").write_text(profile(spec))
        sandbox = self._sandbox(bundle, parameters(bundle.rootfs, spec.mounts))
        await self._tool.ask(*sandbox[1:], *_PROBE, failed=partial(CreateFailed, spec.id))
        return dataclasses.replace(process, argv=[*sandbox, *process.argv])

    def _sandbox(self, bundle: Bundle, told: Mapping[str, str]) -> list[str]:
        given = [part for name, path in told.items() for part in ("-D", f"{name}={path}")]
        return [self._tool.path, "-f", str(bundle.dir / "profile.sb"), *given]

    async def _unmake(self, bundle: Bundle) -> None:
        """All of it lies in its directory."""

    def _exec(self, job: Job, argv: Sequence[str], told: ExecOptions, *, tty: bool, stdin: bool) -> ToolExec:
        """Through a file, which its reader removes: variables are for no list of processes, and the keeper can become another user."""
        del stdin
        file = job.bundle.dir / f"exec-{secrets.token_hex(6)}.json"
        file.touch(0o600)
        file.write_text(json.dumps(seatbelt_process.entered(job.doc, job.bundle.rootfs, argv, told) | {"tty": tty}))
        return ToolExec(argv[0], [*KEEPER, "enter", str(file)], _exec_fault)

    async def pid(self, handle: Handle) -> int | None:
        job = self._job(handle)
        return None if job.ended else job.pid

    async def _sample(self, job: Job) -> UsageSample:
        """Of the processes of its group."""
        listed = await capture(["ps", "-A", "-o", "pgid=,rss=,time="], env={**os.environ, "LC_ALL": "C"})
        rows = [row.split() for row in listed.stdout.decode().splitlines()]
        own = [(int(rss), seatbelt_process.seconds(spent)) for group, rss, spent in rows if group == str(job.pid)]
        if not own:
            raise NotFound(job.bundle.id, "it has ended")
        cpu_ns = round(sum(spent for _, spent in own) * 1e9)
        memory = sum(rss for rss, _ in own) << 10
        return UsageSample(at=datetime.now(UTC), cpu_total_ns=cpu_ns, memory_bytes=memory, memory_limit_bytes=0, pids=len(own))


def _exec_fault(status: int, stderr: bytes) -> int | None:
    """As said by sandbox-exec where the program cannot be executed."""
    if status != _NOT_EXECUTED or b"sandbox-exec: execvp() of" not in stderr:
        return None
    return 127 if b"No such file" in stderr else 126
