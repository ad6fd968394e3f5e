"""Running a further command in a container whose processes are this machine's, without its runtime."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from zlayer_driver.backends.supervised.container import Container
from zlayer_driver.backends.supervised.security import CAPABILITIES
from zlayer_driver.errors import NotFound
from zlayer_driver.host import cgroups, enter, seccomp_filter
from zlayer_driver.host.session import Session
from zlayer_driver.model import Exit

Doc = dict[str, Any]

_FAULT_BYTES = 4096
_OURS = 125  # what `enter` ends with where the fault is not the command's


class Entry:
    """A `Command` by `enter`. `Uncompiled` if the container has a filter that only its runtime can make."""

    def __init__(self, container: Container, linux: Doc, process: Doc) -> None:
        """``linux`` and ``process`` as in a runtime spec: of the container, and of the command."""
        self._container = container
        self._namespaces = sum(enter.NAMESPACES[kind["type"]] for kind in linux["namespaces"])
        self._command = _command(process, linux.get("seccomp"))
        self._opened: list[int] = []
        self._faults = -1
        self.name = self._command.argv[0]

    def prepare(self, terminal: int = -1) -> tuple[list[str], Sequence[int]]:
        container, init = self._container, self._container.init
        if cgroups.frozen(container.bundle.cgroup):
            raise NotFound(container.bundle.id, "it is paused, and takes no command")
        self._faults, faults = os.pipe()
        program = enter.program()
        self._opened += [self._faults, faults, program]
        try:
            groups = cgroups.of_process(container.record.init.pid)
        except (FileNotFoundError, ProcessLookupError):
            raise NotFound(container.bundle.id, "it has ended, and takes no command") from None
        order = enter.order(self._command, init=init.fileno(), namespaces=self._namespaces, groups=groups, faults=faults, terminal=terminal)
        self._opened.append(order)
        return [f"/proc/self/fd/{program}", str(order)], [program, order, faults, init.fileno(), *([terminal] if terminal >= 0 else [])]

    def exit(self, status: int, _stderr: bytes = b"") -> tuple[Exit, str]:
        os.set_blocking(self._faults, False)
        with suppress(BlockingIOError):
            code, _, told = os.read(self._faults, _FAULT_BYTES).decode("utf-8", "replace").partition(" ")
            if int(code) != _OURS:
                return Exit(int(code)), f"{told}\n"
            raise NotFound(self._container.bundle.id, f"no command can be executed in it: {told}")
        return Exit.of_child(status), ""

    async def session(self, *, tty: bool) -> Session:
        if not tty:
            argv, fds = self.prepare()
            return Session.start(argv, tty=False, pass_fds=fds)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            argv, fds = self.prepare(theirs.fileno())
            return await Session.on_terminal(argv, given_by=theirs, to=ours, pass_fds=fds)

    async def end(self) -> None:
        for fd in self._opened:
            os.close(fd)
        self._opened.clear()


def _command(process: Doc, profile: Doc | None) -> enter.Command:
    user = process["user"]
    compiled, flags = seccomp_filter.compiled(profile) if profile else (b"", 0)
    limits = [(getattr(resource, limit["type"]), limit["soft"], limit["hard"]) for limit in process.get("rlimits", ())]
    return enter.Command(
        argv=process["args"],
        env=process["env"],
        cwd=process["cwd"],
        uid=user["uid"],
        gid=user["gid"],
        groups=user["additionalGids"],
        capabilities=sum(1 << CAPABILITIES.index(name) for name in process["capabilities"]["bounding"]),
        limits=limits,
        no_new_privileges=process.get("noNewPrivileges", False),
        oom_score_adj=process.get("oomScoreAdj"),
        filter=compiled,
        filter_flags=flags,
    )
