"""Running a further command in a container, by the runtime's own verb or by whatever else is a `Command`."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any, Protocol

from zlayer_driver.backends.oci_runtime import GVISOR, OciRuntime
from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.backends.supervised.runtime import command_fault, last_error
from zlayer_driver.backends.supervised.users import resolve
from zlayer_driver.errors import InvalidSpec, NotFound, TimedOut
from zlayer_driver.host.pidfd import PidFd, identify
from zlayer_driver.host.processes import capture
from zlayer_driver.host.session import STDOUT, Session
from zlayer_driver.model import ExecResult, Exit
from zlayer_driver.readings import Channel, ExecEvent, ExecInput, ExecOptions

Doc = dict[str, Any]

_LIMIT = 16 << 20
_GRACE_S = 5.0
_TERM = "TERM=xterm"  # below what the container says


class Command(Protocol):
    """One command. Nothing is there before `prepare`, and nothing is left after `end`."""

    name: str

    def prepare(self) -> tuple[list[str], Sequence[int]]:
        """The command line that runs it, and the fds that this needs."""
        ...

    def exit(self, status: int, stderr: bytes = b"", /) -> tuple[Exit, str]:
        """Of what the command line ended with: the exit, and the reason where the command could not be run: 127 or 126, as in a shell."""
        ...

    async def session(self, *, tty: bool) -> Session: ...

    async def end(self) -> None:
        """The command line is over, but if it was killed, its command may not be."""
        ...


class RuntimeExec:
    """By the runtime's own verb, with three files in the bundle."""

    def __init__(self, bundle: Bundle, runtime: OciRuntime, process: Doc) -> None:
        base = bundle.dir / f"exec-{secrets.token_hex(6)}"
        self._file, self._pid, self._log, self._inner = (base.with_suffix(suffix) for suffix in (".json", ".pid", ".log", ".inner"))
        self._runtime = runtime
        self._over = False
        self._bundle = bundle
        self._process = process
        self.name = str(process["args"][0])

    def prepare(self) -> tuple[list[str], Sequence[int]]:
        self._file.write_text(json.dumps(self._process))
        files: tuple[str, ...] = ("--pid-file", str(self._pid), "--process", str(self._file))
        if self._runtime.kind == GVISOR:
            files = (*files, "--internal-pid-file", str(self._inner))
        return [self._runtime.path, *self._runtime.options(self._bundle, self._log), "exec", *files, self._bundle.id], ()

    def exit(self, status: int, stderr: bytes = b"") -> tuple[Exit, str]:
        self._over = status >= 0
        told = last_error(self._log) or self._untold(stderr)
        if code := command_fault(told):
            return Exit(code), f"{self.name}: {told}\n"
        if self._pid.exists():
            return Exit.of_child(status), ""
        raise NotFound(self._bundle.id, f"no command can be executed in it: {told}")

    def _untold(self, stderr: bytes) -> str:
        """What a runtime says that writes no log, if that was the runtime and not its command."""
        return "" if self._pid.exists() else stderr.decode("utf-8", "replace").strip()

    async def session(self, *, tty: bool) -> Session:
        return Session.start(self.prepare()[0], tty=tty)

    async def end(self) -> None:
        if not self._over and self._inner.exists():
            await self._runtime.run(self._bundle, "kill", "--pid", self._inner.read_text(), self._bundle.id, "KILL")
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            self._kill(int(self._pid.read_text()))
        for file in (self._file, self._pid, self._log, self._inner):
            file.unlink(missing_ok=True)

    def _kill(self, pid: int) -> None:
        """Only what is in the container's group: the pid may be somebody else's by now."""
        process = identify(pid)
        pidfd = PidFd.open(process) if process else None
        if pidfd is None:
            return
        with pidfd:
            if self._bundle.cgroup in Path(f"/proc/{pid}/cgroup").read_text():
                pidfd.send(SIGKILL)


async def execute(command: Command, *, timeout_s: float) -> ExecResult:
    """Output is kept up to 16 MiB a stream."""
    try:
        argv, fds = command.prepare()
        done = await capture(argv, timeout_s=timeout_s, limit_bytes=_LIMIT, grace_s=_GRACE_S, pass_fds=fds)
        end, reason = command.exit(done.status, done.stderr)
    except TimedOut:
        raise TimedOut(f"command {command.name!r}", timeout_s) from None
    finally:
        await command.end()
    return ExecResult(end, b"", reason.encode()) if reason else ExecResult(end, done.stdout, done.stderr)


async def stream(command: Command, stdin: AsyncIterator[ExecInput] | None, *, tty: bool) -> AsyncIterator[ExecEvent]:
    """Output as it comes, the exit last. Closing the iterator, or cancelling who waits for it, kills the command."""
    try:
        session = await command.session(tty=tty)
        feeding = asyncio.create_task(session.feed(stdin))
        try:
            async for source, data in session.output():
                yield ExecEvent(Channel.STDOUT if source == STDOUT else Channel.STDERR, data)
            end, _ = command.exit(await asyncio.shield(session.status))
            yield ExecEvent(exit_code=end.code)
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)  # input that fails is its giver's matter
            await session.close()
    finally:
        await command.end()


def process_of(spec: Doc, rootfs: Path, argv: Sequence[str], options: ExecOptions, *, tty: bool) -> Doc:
    """The ``process`` object of a runtime spec with another command. `InvalidSpec` for one that cannot be."""
    if not argv or any("\0" in part for part in argv):
        raise InvalidSpec("a command to execute needs a name, and no NUL byte")
    process: Doc = {**spec["process"], "args": list(argv), "terminal": tty}
    process["env"] = [*([_TERM] if tty else []), *process["env"], *(f"{name}={value}" for name, value in options.env.items())]
    if options.work_dir:
        process["cwd"] = options.work_dir
    if options.user:
        user = resolve(rootfs, options.user)
        process["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)}
    return process
