"""A further command in a container, by a command line of a tool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from zlayer_driver.errors import InvalidSpec, TimedOut
from zlayer_driver.host.processes import capture
from zlayer_driver.host.session import STDOUT, Session
from zlayer_driver.model import ExecResult, Exit
from zlayer_driver.readings import Channel, ExecEvent, ExecInput

_LIMIT = 16 << 20
_HEARD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ToolExec:
    """``argv`` runs ``name`` in the container and ends as it does.

    ``fault`` is given a code and what came on standard error: the code of a command that could not be run at all, 127 or 126 as a shell has
    them, where the tool says so in its own words; else ``None``.
    """

    name: str
    argv: Sequence[str]
    fault: Callable[[int, bytes], int | None] = lambda _status, _stderr: None

    def __post_init__(self) -> None:
        if not self.name or any("\0" in part for part in self.argv):
            raise InvalidSpec("a command to execute needs a name, and no NUL byte")

    def exit(self, status: int, stderr: bytes) -> Exit:
        code = self.fault(status, stderr) if status >= 0 else None
        return Exit(code) if code else Exit.of_child(status)


async def execute(command: ToolExec, *, timeout_s: float) -> ExecResult:
    """Output is kept up to 16 MiB a stream."""
    try:
        done = await capture(command.argv, timeout_s=timeout_s, limit_bytes=_LIMIT)
    except TimedOut:
        raise TimedOut(f"command {command.name!r}", timeout_s) from None
    return ExecResult(command.exit(done.status, done.stderr), done.stdout, done.stderr)


async def stream(command: ToolExec, stdin: AsyncIterator[ExecInput] | None, *, tty: bool) -> AsyncIterator[ExecEvent]:
    """Output as it comes, the exit last. Closing the iterator, or cancelling who waits for it, kills the command."""
    session = Session.start(command.argv, tty=tty)
    feeding = asyncio.create_task(session.feed(stdin))
    heard = b""
    try:
        async for source, data in session.output():
            channel = Channel.STDOUT if source == STDOUT else Channel.STDERR
            heard = heard if channel is Channel.STDOUT else (heard + data)[-_HEARD_BYTES:]
            yield ExecEvent(channel, data)
        yield ExecEvent(exit_code=command.exit(await asyncio.shield(session.status), heard).code)
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)  # input that fails is its giver's matter
        await session.close()
