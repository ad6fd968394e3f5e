"""A further command in a container of containerd's."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Final

from zlayer_driver.backends.hcs_ctr import KILL, Ctr, refusal
from zlayer_driver.errors import InvalidSpec, TimedOut, Unsupported
from zlayer_driver.model import ExecResult, Exit
from zlayer_driver.readings import ExecOptions

_NO_COMMAND: Final = re.compile("cannot find the (file|path) specified", re.IGNORECASE)
_NOT_FOUND: Final = 127


async def execute(ctr: Ctr, container: str, argv: Sequence[str], options: ExecOptions, *, timeout_s: float) -> ExecResult:
    """In one that runs. `Unsupported` where there are variables: ctr passes none on to a further command."""
    if options.env:
        raise Unsupported("a further command in a Windows container takes no variables of its own", hint="set them in the command")
    name = f"exec-{secrets.token_hex(6)}"
    where = [*(["--cwd", options.work_dir] if options.work_dir else []), *(["--user", options.user] if options.user else [])]
    try:
        done = await ctr.run("tasks", "exec", "--exec-id", name, *where, container, *argv, timeout_s=timeout_s)
    except TimedOut:
        await ctr.run("tasks", "kill", "--exec-id", name, "--signal", str(KILL), container)
        raise TimedOut(f"command {argv[0]!r}", timeout_s) from None
    told = refusal(done)
    if told and not _NO_COMMAND.search(told):
        raise InvalidSpec(f"command {argv[0]!r} cannot be executed: {told}")
    return ExecResult(Exit(_NOT_FOUND), stderr=told.encode()) if told else ExecResult(Exit(done.status), done.stdout, done.stderr)
