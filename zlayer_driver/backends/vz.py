"""macOS in a virtual machine for each container, by tart 2.32 (https://github.com/cirruslabs/tart); images are tart's, from OCI registries.

::

    tart clone IMAGE NAME
    tart get NAME --format json
    tart set NAME --cpu N --memory MIB
    tart run NAME --no-graphics --no-audio --no-clipboard [--dir SHARE:PATH[:ro]]…
    tart ip NAME --wait SECONDS --resolver agent
    tart exec [-i] [-t] NAME COMMAND [ARG…]
    tart delete NAME

``run`` is the machine; ``exec`` runs a command in it by the agent that all but the bare images have, and ends with its code. Both are the
keeper's: the machine goes when the command does. ``exec`` has no options for a user, a directory or variables, so a shell in the guest
sees to them (`vz_guest`). Shares appear below «/Volumes/My Shared Files», and variables that name a mount's target name that place.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from signal import SIGKILL, Signals

from zlayer_driver.backends import Context, vz_guest
from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.backends.tool import Interactive, Tool, ended_within, said
from zlayer_driver.backends.tool_exec import ToolExec
from zlayer_driver.backends.tool_job import Command, Job
from zlayer_driver.backends.tool_spec import cpus, moved, refuse_all_but
from zlayer_driver.backends.vz_images import TartImages
from zlayer_driver.config import PluginConfig
from zlayer_driver.errors import CreateFailed, InternalError, InvalidSpec, TimedOut, Unsupported
from zlayer_driver.model import Handle, TaskSpec
from zlayer_driver.readings import ExecOptions, OverlayKind

_TOOL = Tool("tart", hint="install it: brew install cirruslabs/cli/tart")
_SHARES = "/Volumes/My Shared Files"
_BOOT_TIMEOUT_S = 120
_SIGNAL_TIMEOUT_S = 10.0
_ABLE = ("user", "work_dir", "read-only mounts")


def make(context: Context) -> VzBackend:
    """The backend of the operator's config."""
    return VzBackend(root=context.state_dir / "vz")


def missing(_config: PluginConfig) -> str:
    """What it needs and this node lacks, with the cure."""
    return _TOOL.missing()


class VzBackend(TartImages, Interactive):
    def __init__(self, *, root: Path) -> None:
        super().__init__(name="vz", root=root, tool=_TOOL)

    def overlay_kind(self) -> OverlayKind:
        return OverlayKind.GUEST_MANAGED

    async def address(self, handle: Handle) -> str | None:
        """By the leases of macOS's own DHCP server; ``None`` before it has one."""
        done = await self._tool.run("ip", self._name_of(self._running(handle).bundle))
        return done.stdout.decode().strip() if done.status == 0 else None

    async def _version(self) -> str:
        return (await self._tool.ask("--version", failed=Unsupported)).strip()

    async def _make(self, spec: TaskSpec, bundle: Bundle) -> Command:
        refuse_all_but(spec, _ABLE, backend="tart")
        name, failed = self._name_of(bundle), partial(CreateFailed, spec.id)
        shares = {mount.target: f"zlayer{number}" for number, mount in enumerate(spec.mounts)}
        env = moved(spec.env, {target: f"{_SHARES}/{share}" for target, share in shares.items()})
        script = vz_guest.script(spec, env, bundle.dir / "script")
        await self._tool.ask("clone", spec.image, name, failed=failed, timeout_s=0)
        image = await self._tool.ask_json("get", name, "--format", "json", failed=failed)
        # Less than its image asks for, a macOS guest does not boot with.
        size_mib, count = max(int(image["Memory"]), spec.resources.memory_bytes >> 20), max(int(image["CPU"]), cpus(spec.resources))
        await self._tool.ask("set", name, "--cpu", str(count), "--memory", str(size_mib), failed=failed)
        machine = [self._tool.path, "run", name, "--no-graphics", "--no-audio", "--no-clipboard"]
        for mount in spec.mounts:
            if ":" in mount.source or "," in mount.source or not Path(mount.source).is_dir():  # noqa: ASYNC240 # one look
                raise InvalidSpec(f"mount {mount.target!r}: a macOS guest takes directories alone, without ':' or ',' in their paths")
            machine += ["--dir", f"{shares[mount.target]}:{mount.source}{':ro' if mount.read_only else ''}"]
        return Command(
            argv=[self._tool.path, "exec", "-i", name, vz_guest.SHELL],
            stdin=str(script),
            machine=machine,
            ready=[self._tool.path, "ip", name, "--wait", str(_BOOT_TIMEOUT_S), "--resolver", "agent"],
        )

    async def _unmake(self, bundle: Bundle) -> None:
        done = await self._tool.run("delete", self._name_of(bundle))
        if done.status != 0 and b"does not exist" not in done.stderr:
            raise InternalError(f"cannot remove machine {self._name_of(bundle)}: {done.stderr.decode('utf-8', 'replace').strip()}")

    async def _send(self, job: Job, number: int) -> None:
        """A guest that hangs takes no signal, and must not hold up who sends it."""
        argv = vz_guest.signalling(Signals(number).name.removeprefix("SIG"))
        done = await self._tool.run("exec", self._name_of(job.bundle), *argv, timeout_s=_SIGNAL_TIMEOUT_S)
        if done.status != 0 and not job.ended:
            raise InternalError(f"the guest of {job.bundle.id!r} cannot pass signal {number} on: {said(done)}")

    async def _kill(self, job: Job) -> None:
        with suppress(InternalError, TimedOut):
            await self._send(job, SIGKILL)
            if await ended_within(job, _SIGNAL_TIMEOUT_S):
                return
        await job.kill()

    def _exec(self, job: Job, argv: Sequence[str], told: ExecOptions, *, tty: bool, stdin: bool) -> ToolExec:
        flags = [*(("-i",) if stdin else ()), *(("-t",) if tty else ())]
        return ToolExec(argv[0], [self._tool.path, "exec", *flags, self._name_of(job.bundle), *vz_guest.entering(argv, told)])
