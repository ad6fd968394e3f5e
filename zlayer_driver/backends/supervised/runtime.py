"""What a supervisor calls to create a container, and how such a program tells why it could not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Protocol

from zlayer_driver.backends.supervised.bundle import Bundle, Record
from zlayer_driver.host.pidfd import PidFd

_ABOUT_COMMAND = re.compile(r"\bexec(utable|uting command)?\b|\bfailed to load /")


class Runtime(Protocol):
    """A program with the verb ``create`` of an OCI runtime's command line, and what it takes to let its containers run."""

    @property
    def path(self) -> str: ...

    @property
    def name(self) -> str:
        """As in a sentence that tells a user what it said."""
        ...

    @property
    def capabilities(self) -> frozenset[str]:
        """What a container of it can be given."""
        ...

    def options(self, bundle: Bundle, log: Path | None = None) -> tuple[str, ...]:
        """What stands before the verb. Errors are told in ``log``, which `last_error` reads."""
        ...

    @property
    def kind(self) -> str:
        """Whose command line that is, for who takes the container back."""
        ...

    async def start(self, bundle: Bundle, init: PidFd | None, log: Path) -> str:
        """Lets a created container run; nothing, or its words why it does not. ``init`` is gone if the container has ended already."""
        ...

    async def signal(self, bundle: Bundle, init: PidFd, number: int) -> bool:
        """Whether the container was there to be signalled. SIGKILL never comes this way: it is sent to ``init``."""
        ...

    async def ran(self, bundle: Bundle, record: Record) -> bool:
        """Whether a container was let run by a driver that was killed before it could say so."""
        ...


def last_error(log: Path) -> str:
    """The last error that a runtime wrote to its JSON log; empty if there is none."""
    try:
        lines = log.read_text(errors="replace").replace("}{", "}\n{").splitlines()  # gVisor ends no line
    except FileNotFoundError:
        return ""
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and str(entry.get("level")).lower() in ("error", "fatal"):
            told = str(entry.get("msg", entry.get("message", ""))).partition("\n")[0]
            return told.rpartition("in executing process : ")[2]  # youki says so of whatever failed before the command
    return ""


def command_fault(told: str) -> int:
    """A shell's code for a command that a runtime, in these words, could not run: 127 missing, 126 not executable; 0 for other words."""
    lowered = told.lower()
    if not _ABOUT_COMMAND.search(lowered):
        return 0
    if "not found" in lowered or "no such file" in lowered:
        return 127
    return 126 if "permission" in lowered or "exec format" in lowered else 0
