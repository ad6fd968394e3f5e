"""Linux containers in a libkrun microVM each, by krunvm 0.2.6 (https://github.com/containers/krunvm), which keeps its images by buildah.

::

    krunvm create IMAGE --name NAME --cpus N --mem MIB [--workdir DIR] [--volume HOST:GUEST]…
    krunvm start NAME [--env K=V]… [COMMAND [-- ARG…]]
    krunvm delete NAME

``start`` is the machine itself: it has the container's streams for its own, and ends with the code of the guest's process, or 127 where that
is missing. Nothing reaches a process in the guest from outside, so there are no signals and no further commands; the signal that stops the
container is for the machine, and ends it. Reasons come on the standard output, with code 255. Variables are seen in the node's list of processes.

krunvm reads its one file of machines, changes it and writes it back, so all that change it wait for each other.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

from zlayer_driver.backends import Context
from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.backends.tool import Tool, ToolBackend
from zlayer_driver.backends.tool_job import Command
from zlayer_driver.backends.tool_spec import cpus, refuse_all_but
from zlayer_driver.config import PluginConfig
from zlayer_driver.errors import CreateFailed, InternalError, InvalidSpec, Unsupported
from zlayer_driver.model import TaskSpec
from zlayer_driver.readings import OverlayKind

_TOOL = Tool("krunvm", hint="install it: brew tap slp/krun && brew install krunvm")
_PULL_TIMEOUT_S = 0.0  # the driver limits a start by cancelling it
_LEAST_MIB = 128
_ABLE = ("work_dir",)


def make(context: Context) -> KrunBackend:
    """The backend of the operator's config."""
    return KrunBackend(root=context.state_dir / "krun")


def missing(_config: PluginConfig) -> str:
    """What it needs and this node lacks, with the cure."""
    return _TOOL.missing()


class KrunBackend(ToolBackend):
    def __init__(self, *, root: Path) -> None:
        super().__init__(name="krun", root=root, tool=_TOOL)

    def overlay_kind(self) -> OverlayKind:
        return OverlayKind.GUEST_MANAGED

    async def _version(self) -> str:
        return (await self._tool.ask("--version", failed=Unsupported)).strip().removeprefix("krunvm ")

    async def _make(self, spec: TaskSpec, bundle: Bundle) -> Command:
        refuse_all_but(spec, _ABLE, backend="krunvm")
        name, size_mib = self._name_of(bundle), max(_LEAST_MIB, spec.resources.memory_bytes >> 20)
        argv = ["create", spec.image, "--name", name, "--cpus", str(cpus(spec.resources)), "--mem", str(size_mib)]
        if spec.work_dir:
            argv += ["--workdir", spec.work_dir]
        for mount in spec.mounts:
            argv += ["--volume", f"{mount.source}:{mount.target}"]
        async with self._alone():
            await self._tool.ask(*argv, failed=partial(CreateFailed, spec.id), timeout_s=_PULL_TIMEOUT_S)
        env = [part for key, value in spec.env.items() for part in ("--env", f"{key}={value}")]
        return Command(argv=[self._tool.path, "start", name, *env, *_command(spec)], client=False)

    async def _unmake(self, bundle: Bundle) -> None:
        async with self._alone():
            done = await self._tool.run("delete", self._name_of(bundle))
        if done.status != 0 and b"No VM found" not in done.stdout:
            raise InternalError(f"cannot remove machine {self._name_of(bundle)}: {done.stdout.decode('utf-8', 'replace').strip()}")

    def _alone(self) -> AbstractAsyncContextManager[bool]:
        return Bundle(self._root / "krunvm", "machines").locked(create=True)


def _command(spec: TaskSpec) -> list[str]:
    """Nothing is the image's own command; only krunvm knows what that is, so it cannot be added to."""
    argv = [*(spec.entrypoint or ()), *((spec.command,) if spec.command else ()), *spec.args]
    if spec.args and not (spec.command or spec.entrypoint):
        raise InvalidSpec("arguments without a command: krunvm does not tell the image's", hint='set "command" in the task\'s config')
    return [argv[0], *(("--", *argv[1:]) if argv[1:] else ())] if argv else []
