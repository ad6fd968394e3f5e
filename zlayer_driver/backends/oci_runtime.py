"""OCI runtimes: which of them this node has and can use, and their command lines."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zlayer_driver.errors import ConfigError, Unsupported
from zlayer_driver.host import cgroups
from zlayer_driver.host.processes import Completed, capture

PREFERRED = ("crun", "runc", "youki")
_TIMEOUT_S = 30.0
_ABOUT_COMMAND = re.compile(r"\bexec(utable)?\b")


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime that works here. Its state lies in ``state`` below the driver's own directory."""

    path: str
    version: str = ""

    @property
    def name(self) -> str:
        return Path(self.path).name

    def options(self, root: Path, log: Path | None = None) -> tuple[str, ...]:
        """Options that stand before the verb; they are the same for crun, runc and youki."""
        told = ("--log", str(log), "--log-format", "json") if log else ()
        return ("--root", str(root / "rt" / self.name), *told)

    async def run(self, root: Path, *arguments: str, log: Path | None = None) -> Completed:
        """`TimedOut` if it does not come back: a runtime's verbs are short."""
        return await capture([self.path, *self.options(root, log), *arguments], timeout_s=_TIMEOUT_S)

    async def state(self, root: Path, container: str) -> str:
        """The runtime's word for where the container is in its life (created, running, stopped); empty if it does not know it."""
        answer = await self.run(root, "state", container)
        try:
            return str(json.loads(answer.stdout)["status"])
        except (ValueError, KeyError, TypeError):
            return ""


def last_error(log: Path) -> str:
    """The last error that a runtime wrote to its JSON log; empty if there is none."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal"):
            return str(entry.get("msg", ""))
    return ""


def command_fault(told: str) -> int:
    """A shell's code for a command that a runtime, in these words, could not run: 127 missing, 126 not executable; 0 for other words."""
    lowered = told.lower()
    if not _ABOUT_COMMAND.search(lowered):
        return 0
    if "not found" in lowered or "no such file" in lowered:
        return 127
    return 126 if "permission denied" in lowered or "exec format" in lowered else 0


class OciRuntime:
    """Chooses: the runtime that the operator configured, else the first of `PREFERRED` that works. A choice is kept, a failure is not.

    ``further`` are those that a task may ask for besides.
    """

    def __init__(self, wanted: str = "", further: Collection[str] = ()) -> None:
        self._wanted = wanted
        self._further = further
        self._chosen: dict[str, Runtime] = {}

    async def select(self, wanted: str = "") -> Runtime:
        """`ConfigError` if the one that is asked for does not work here, `Unsupported` if none does; both say why, and the cure."""
        asked = wanted or self._wanted
        if asked not in self._chosen:
            self._chosen[asked] = await (_named(asked) if asked else _first())
        return self._chosen[asked]

    async def usable(self) -> list[Runtime]:
        """Those that work here, by name: of `PREFERRED`, and of what the operator names."""
        found = []
        for name in dict.fromkeys([*PREFERRED, *self._further, *filter(None, [self._wanted])]):
            with suppress(ConfigError, Unsupported):
                found.append(await self.select(name))
        return sorted(found, key=lambda runtime: runtime.name)


async def _named(name: str) -> Runtime:
    found = await _examine(name)
    if isinstance(found, Unsupported):
        raise ConfigError(found.message, hint=found.hint)
    return found


async def _first() -> Runtime:
    faults = []
    for name in PREFERRED:
        found = await _examine(name)
        if isinstance(found, Runtime):
            return found
        faults.append(found)
    raise Unsupported(
        f"no OCI runtime works on this node ({'; '.join(fault.message for fault in faults)})",
        hint=next((fault.hint for fault in faults if "install" not in fault.hint), "install crun or runc"),
    )


async def _examine(name: str) -> Runtime | Unsupported:
    path = shutil.which(name, path=None if "/" in name else _search_path())
    if path is None:
        return Unsupported(f"{name} is not installed", hint=f"install {name}")
    answer = await capture([path, "--version"], timeout_s=_TIMEOUT_S)
    if answer.status != 0:
        return Unsupported(f"{path} does not run (status {answer.status})", hint=f"install {name} again")
    words = answer.stdout.decode("utf-8", "replace").split()
    version = words[words.index("version") + 1] if "version" in words[:-1] else ""
    return _crun_fault(path) or Runtime(path, version)


def _crun_fault(path: str) -> Unsupported | None:
    """Crun refuses a hybrid machine whose v2 tree has controllers, even where it is told to leave cgroups alone."""
    mounted = cgroups.trees()
    if Path(path).name != "crun" or mounted.mode is not cgroups.Mode.HYBRID:
        return None
    if not (left := mounted.v2_controllers()):
        return None
    base = Path("/sys/fs/cgroup")
    cure = " && ".join(f"mkdir -p {base / name} && mount -t cgroup -o {name} {name} {base / name}" for name in left)
    return Unsupported(f"crun refuses cgroups in hybrid mode while the v2 tree has controllers ({', '.join(left)})", hint=f"run: {cure}")


def _search_path() -> str:
    """PATH, and where distributions put runtimes even if PATH lacks it."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
