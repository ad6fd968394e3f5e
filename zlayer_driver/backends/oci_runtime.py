"""The command lines of an OCI runtime."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from zlayer_driver.backends.supervised.bundle import Bundle, Record
from zlayer_driver.backends.supervised.runtime import last_error
from zlayer_driver.backends.supervised.security import own_capabilities
from zlayer_driver.backends.supervised.steps import settle
from zlayer_driver.host.commands import Completed
from zlayer_driver.host.gate import open_gate
from zlayer_driver.host.pidfd import PidFd
from zlayer_driver.host.processes import capture

CRUN = "crun"
GVISOR = "runsc"
SHARE_THE_KERNEL = (CRUN, "runc", "youki")  # what runs in their containers is a process of this machine
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
