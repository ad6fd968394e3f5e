"""Which OCI runtimes this node has and can use, and why not the others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from zlayer_driver.backends.oci_runtime import CRUN, OciRuntime
from zlayer_driver.errors import ConfigError, Unsupported
from zlayer_driver.host import cgroups
from zlayer_driver.host.processes import capture

PREFERRED = (CRUN, "runc", "youki")
_TIMEOUT_S = 30.0


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
