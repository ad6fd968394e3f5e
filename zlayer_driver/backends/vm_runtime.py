"""What conmon takes for the OCI runtime of a container in a VM: the monitor (`zlayer_driver.guest.monitor`), and calls to it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from zlayer_driver.backends.supervised.bundle import Bundle, Record
from zlayer_driver.backends.supervised.security import CAPABILITIES
from zlayer_driver.backends.vm_exec import call
from zlayer_driver.backends.vm_machine import Machine
from zlayer_driver.errors import NotFound
from zlayer_driver.guest.frames import Kind
from zlayer_driver.host.pidfd import PidFd

_HANG_TIMEOUT_S = 60.0
_MONITOR = ("-I", "-m", "zlayer_driver.guest.monitor")


@dataclass(frozen=True, slots=True)
class VmRuntime:
    """The monitor in the place of an OCI runtime: it knows ``create`` as a command, and a start as a call.

    ``hang_timeout_s`` is for a guest that answers nothing. ``machine`` is needed to make a container, not to speak with one.
    """

    path: str = sys.executable
    machine: Machine | None = None
    hang_timeout_s: float = _HANG_TIMEOUT_S

    @property
    def name(self) -> str:
        return "the VM"

    @property
    def capabilities(self) -> frozenset[str]:
        """All of its own kernel, whatever the driver has of the node's."""
        return frozenset(CAPABILITIES)

    @property
    def kind(self) -> str:
        return "vm"

    def options(self, _bundle: Bundle, log: Path | None = None) -> tuple[str, ...]:
        return (*_MONITOR, *(("--log", str(log)) if log else ()))

    async def start(self, bundle: Bundle, _init: PidFd | None, _log: Path) -> str:
        try:
            answer = await call(bundle, Kind.START)
        except NotFound as error:
            return str(error)
        if answer.kind is Kind.DONE:
            return ""
        number, what = answer.failure()
        told = f"exec: {os.strerror(number)}" if what == "execute" else f"the guest cannot {what}: {os.strerror(number)}"
        return told.lower()

    async def signal(self, _bundle: Bundle, init: PidFd, number: int) -> bool:
        """The monitor passes it on."""
        return init.send(number)

    async def ran(self, bundle: Bundle, _record: Record) -> bool:
        """The monitor says so before it lets the container run."""
        return bundle.started.exists()
