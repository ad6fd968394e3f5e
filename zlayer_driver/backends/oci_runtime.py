"""OCI runtimes: which of them this node has and can use, and their command lines."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from zlayer_driver.backends.supervised.bundle import Bundle, Record
from zlayer_driver.backends.supervised.runtime import last_error
from zlayer_driver.backends.supervised.security import own_capabilities
from zlayer_driver.backends.supervised.steps import settle
from zlayer_driver.errors import ConfigError, Unsupported
from zlayer_driver.host import cgroups
from zlayer_driver.host.commands import Completed
from zlayer_driver.host.gate import open_gate
from zlayer_driver.host.pidfd import PidFd
from zlayer_driver.host.processes import capture

CRUN = "crun"
PREFERRED = (CRUN, "runc", "youki")
GVISOR = "runsc"
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class OciRuntime:
    """A runtime that works here; ``kind`` is its own word for what it is. Its state lies in ``state`` below the driver's own directory."""

    path: str
    kind: str = ""
    version: str = ""

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def capabilities(self) -> frozenset[str]:
        return own_capabilities()

    def options(self, bundle: Bundle, log: Path | None = None) -> tuple[str, ...]:
        """They are the same for all, but for gVisor's network stack."""
        told = ("--log", str(log), "--log-format", "json") if log else ()
        network = ("--network", {None: "host", "": "none"}.get(bundle.network(), "sandbox")) if self.kind == GVISOR else ()
        return ("--root", str(bundle.root / "rt" / self.name), *told, *network)

    async def run(self, bundle: Bundle, *arguments: str, log: Path | None = None) -> Completed:
        """`TimedOut` if it does not come back: a runtime's verbs are short."""
        return await capture([self.path, *self.options(bundle, log), *arguments], timeout_s=_TIMEOUT_S)

    async def start(self, bundle: Bundle, init: PidFd | None, log: Path) -> str:
        gate = bundle.root / "rt" / self.name / bundle.id / "exec.fifo"
        if self.kind == "runc" and init and await open_gate(gate, init, bundle.id, timeout_s=_TIMEOUT_S):
            return ""
        done = await self.run(bundle, "start", bundle.id, log=log)
        return "" if done.status == 0 else last_error(log) or done.stderr.decode("utf-8", "replace").strip()

    async def signal(self, bundle: Bundle, init: PidFd, number: int) -> bool:
        """What the host sees of a container of gVisor is the kernel in which it runs."""
        if self.kind != GVISOR:
            return init.send(number)
        return (await self.run(bundle, "kill", bundle.id, str(number))).status == 0

    async def ran(self, bundle: Bundle, record: Record) -> bool:
        """Its own command may still be at work: it is short, and its end is waited for."""
        await settle(bundle, record)
        answer = await self.run(bundle, "state", bundle.id)
        try:
            return bool(json.loads(answer.stdout)["status"] != "created")
        except (ValueError, KeyError, TypeError):
            return True


class Runtimes:
    """Chooses: the runtime that the operator configured, else the first of `PREFERRED` that works. A choice is kept, a failure is not.

    ``further`` are those that a task may ask for besides.
    """

    def __init__(self, wanted: str = "", further: Collection[str] = ()) -> None:
        self._wanted = wanted
        self._further = further
        self._chosen: dict[str, OciRuntime] = {}

    async def select(self, wanted: str = "") -> OciRuntime:
        """`ConfigError` if the one that is asked for does not work here, `Unsupported` if none does; both say why, and the cure."""
        asked = wanted or self._wanted
        if asked not in self._chosen:
            self._chosen[asked] = await (_named(asked) if asked else _first())
        return self._chosen[asked]

    async def survey(self) -> tuple[list[OciRuntime], list[str]]:
        """Of `PREFERRED` and what the operator names: those that work here, by name, and why others that are installed do not."""
        found, refused = [], []
        for name in dict.fromkeys([*PREFERRED, *self._further, *filter(None, [self._wanted])]):
            try:
                found.append(await self.select(name))
            except ConfigError as error:
                refused += [str(error)] if _path(name) else []
        return sorted(found, key=lambda runtime: runtime.name), refused


async def _named(name: str) -> OciRuntime:
    found = await _examine(name)
    if isinstance(found, Unsupported):
        raise ConfigError(found.message, hint=found.hint)
    return found


async def _first() -> OciRuntime:
    faults = []
    for name in PREFERRED:
        found = await _examine(name)
        if isinstance(found, OciRuntime):
            return found
        faults.append(found)
    raise Unsupported(
        f"no OCI runtime works on this node ({'; '.join(fault.message for fault in faults)})",
        hint=next((fault.hint for fault in faults if "install" not in fault.hint), "install crun or runc"),
    )


async def _examine(name: str) -> OciRuntime | Unsupported:
    path = _path(name)
    if path is None:
        return Unsupported(f"{name} is not installed", hint=f"install {name}")
    answer = await capture([path, "--version"], timeout_s=_TIMEOUT_S)
    if answer.status != 0:
        return Unsupported(f"{path} does not run (status {answer.status})", hint=f"install {name} again")
    words = answer.stdout.decode("utf-8", "replace").split() or [""]
    version = words[words.index("version") + 1] if "version" in words[:-1] else ""
    return _crun_fault(path) or OciRuntime(path, words[0], version)


def _crun_fault(path: str) -> Unsupported | None:
    """Crun refuses a hybrid machine whose v2 tree has controllers, even where it is told to leave cgroups alone."""
    mounted = cgroups.trees()
    if Path(path).name != CRUN or mounted.mode is not cgroups.Mode.HYBRID:
        return None
    if not (left := mounted.v2_controllers()):
        return None
    base = Path("/sys/fs/cgroup")
    cure = " && ".join(f"mkdir -p {base / name} && mount -t cgroup -o {name} {name} {base / name}" for name in left)
    return Unsupported(f"crun refuses cgroups in hybrid mode while the v2 tree has controllers ({', '.join(left)})", hint=f"run: {cure}")


def _path(name: str) -> str | None:
    """From PATH, and from where distributions put runtimes even if PATH lacks it."""
    return shutil.which(name, path=None if "/" in name else f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin")
