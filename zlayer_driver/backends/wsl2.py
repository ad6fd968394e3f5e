"""Linux containers on Windows: the OCI backend of a zlayer-driver in a WSL 2 distro of its own, called through wsl.exe.

Written to WSL 2.9.4 and MicrosoftDocs/WSL of July 2026; ``--exec``, ``--cd`` and ``WSL_UTF8`` need WSL 0.64 or later. Three command lines:

``wsl.exe --list --verbose``
    which distros there are, and whether each is of WSL 2 (`basic-commands.md`)
``wsl.exe --distribution D --user root --cd / --exec /usr/local/bin/zlayer-driver --state-dir DIR agent``
    the agent that all calls go to (`wsl2_wire`), by its standard streams, so that no word of a task is ever part of a command line that
    Windows quotes, wsl.exe parses and a process list shows
``wsl.exe --distribution D --user root --cd / --exec /bin/sh -c … DIR out|err``
    one for each output of a container: it copies that to Nomad's named pipe

``--exec`` runs a program without the shell that ``--`` would put before it, and gives its exit code; for failures of its own wsl.exe exits
with -1 and says why on its standard output, in UTF-16LE unless ``WSL_UTF8`` is 1 (`WslClient.cpp`). ``WSLENV`` is emptied: nothing of
the driver's environment reaches the distro.

What survives the plugin: conmon in the distro is the parent of the container and writes down its exit code. A distro is stopped some
15 s after the last process that wsl.exe started in it is gone (``instanceIdleTimeout``, `WslCoreConfig.h`), whatever else runs there: the
relays of each container, which are no children of the plugin's and live until the container's output ends, hold it. A relay that died is
replaced when the container is recovered; conmon's spare read ends keep what nobody has read until then.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from zlayer_driver.backends import Context
from zlayer_driver.backends.wsl2_calls import Calls
from zlayer_driver.backends.wsl2_client import Disconnected, Remote, text
from zlayer_driver.backends.wsl2_paths import to_linux
from zlayer_driver.backends.wsl2_wire import Relayed
from zlayer_driver.config import PluginConfig
from zlayer_driver.contract import Backend
from zlayer_driver.errors import Unsupported
from zlayer_driver.host.commands import leave, run
from zlayer_driver.model import Exit, Fingerprint, Handle, Health, Target, TaskSpec

DISTRO: Final = "zlayer"
_WSL: Final = "wsl.exe"
PROGRAM: Final = "/usr/local/bin/zlayer-driver"
_LIST_TIMEOUT_S: Final = 60.0
# One for each FIFO, by the lock on it, and a single process, so that it is there whole or not at all. It says when it has the FIFO (see
# `wsl2_logs`), whose opening never waits for a writer, as it would by itself, and ends with the FIFO's last writer.
_RELAY: Final = 'cd "$0" && exec 7<>"$1" 3<"$1" 7>&- && flock -n 3 || exit 0; exec 5<>"$1.relay"; echo >&5; exec cat <&3'
_NOT_FOR_THE_DISTRO: Final = {"state_dir", "caches", "overlay", "fallback"}
_HINT: Final = "wsl --import zlayer <directory> <root file system>.tar --version 2, and install zlayer-driver in it"


def make(context: Context) -> Wsl2Backend:
    """The backend of the operator's config."""
    return Wsl2Backend(context.config)


def missing(_config: PluginConfig) -> str:
    """What it needs and this node lacks, with the cure. Whether the distro is there, only WSL can tell: `Wsl2Backend.probe` asks it."""
    return "" if shutil.which(_WSL) else f"{_WSL} is not installed: run wsl --install, and then {_HINT}"


class Wsl2Backend(Calls):
    """``state_dir`` is in the distro."""

    name = "wsl2"

    def __init__(self, config: PluginConfig, *, state_dir: str = "/var/lib/zlayer") -> None:
        self._env = {**os.environ, "WSL_UTF8": "1", "WSLENV": ""}
        told = config.model_dump(mode="json", exclude=_NOT_FOR_THE_DISTRO)
        super().__init__(Remote([*_inside(PROGRAM), "--state-dir", state_dir, "agent"], self._env, told))

    async def probe(self) -> Fingerprint:
        try:
            listed = await run([_WSL, "--list", "--verbose"], env=self._env, timeout_s=_LIST_TIMEOUT_S)
            _check(listed.status, listed.stdout)
            inner: Fingerprint = await self._remote.call(Backend.probe)
        except Unsupported as error:
            return Fingerprint(Health.UNDETECTED, str(error))
        return dataclasses.replace(inner, description=f"{inner.description} in WSL distro {DISTRO}")

    async def start(self, spec: TaskSpec) -> Mapping[str, Any]:
        """The agent writes to FIFOs; the paths of the logs are for the relays."""
        mounts = tuple(dataclasses.replace(mount, source=mount.source and to_linux(mount.source, DISTRO)) for mount in spec.mounts)
        made = await self._remote.call(Backend.start, dataclasses.replace(spec, mounts=mounts))
        data = {**made, "stdout": spec.stdout_path, "stderr": spec.stderr_path}
        await self._see_to_relays(Handle(spec.id, Target.DELEGATE, self.name, data))
        return data

    async def recover(self, handle: Handle) -> None:
        await self._remote.call(Backend.recover, handle)
        await self._see_to_relays(handle)

    async def wait(self, handle: Handle) -> Exit:
        """Outlives an agent that was killed."""
        end: Exit
        with suppress(Disconnected):
            end = await self._remote.call(Backend.wait, handle)
            return end
        end = await self._remote.call(Backend.wait, handle)
        return end

    async def close(self) -> None:
        """Ends the agent; containers and relays go on."""
        await self._remote.close()

    async def _see_to_relays(self, handle: Handle) -> None:
        logs = {"out": handle.data["stdout"], "err": handle.data["stderr"]}
        for name in await self._remote.call(Relayed.lacking_relays, handle):
            leave([*_inside("/bin/sh"), "-c", _RELAY, handle.data["logs"], name], stdout_path=logs[name], env=self._env)


def _inside(program: str) -> list[str]:
    return [_WSL, "--distribution", DISTRO, "--user", "root", "--cd", "/", "--exec", program]


def _check(status: int, told: bytes) -> None:
    """`Unsupported` unless there is our distro, and it is of WSL 2. The words of the table are translated, its columns are not."""
    rows = [line.removeprefix("*").split() for line in told.decode("utf-16-le" if b"\0" in told else "utf-8", "replace").splitlines()]
    found = next((row for row in rows if row[:1] == [DISTRO]), None)
    if status != 0 or found is None:
        raise Unsupported(f"there is no WSL distro {DISTRO!r}{f' ({text(told)})' if status else ''}", hint=_HINT)
    if found[-1] != "2":
        raise Unsupported(f"WSL distro {DISTRO!r} is of WSL {found[-1]}", hint=f"wsl --set-version {DISTRO} 2")
