"""Other programs by what asyncio has on every system: how the driver calls tools on Windows.

On POSIX `processes` does it, for there a child's death is an fd: it is seen without a thread, ends nobody but the child, and does not wait for
what the child has left behind.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zlayer_driver.errors import TimedOut, Unsupported

_CHUNK = 1 << 16
# A Windows child that neither shares our console nor our job object, nor takes our Ctrl-C: as a session of its own is on POSIX.
_APART: Final[dict[str, Any]] = (
    {"creationflags": 0x00000008 | 0x00000200 | 0x01000000}  # DETACHED_PROCESS, CREATE_NEW_PROCESS_GROUP, CREATE_BREAKAWAY_FROM_JOB
    if sys.platform == "win32"
    else {"start_new_session": True}
)


@dataclass(frozen=True, slots=True)
class Completed:
    """``status`` is the exit code, or the negative signal number. Output beyond the limit was read and dropped."""

    status: int
    stdout: bytes
    stderr: bytes


async def begin(argv: Sequence[str], *, env: Mapping[str, str] | None = None, **streams: int) -> asyncio.subprocess.Process:
    """A child whose streams are pipes to us, but for those that are named; `Unsupported` if it cannot be run."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    try:
        return await asyncio.create_subprocess_exec(*argv, env=env, limit=1 << 26, **pipes)  # type: ignore[arg-type]  # the streams alone
    except OSError as error:
        raise Unsupported(f"{argv[0]} cannot be run: {error.strerror}", hint="see that it is installed") from error


async def finish(process: asyncio.subprocess.Process) -> int:
    """Its exit code, if need be by killing it. Its pipes are closed, whoever else may hold them."""
    process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001  # kills it; and there is no other way to let go of pipes
    status = await process.wait()
    await asyncio.sleep(0)  # when the loop closes them
    return status


async def run(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 0.0, limit_bytes: int = 1 << 24
) -> Completed:
    """``timeout_s`` 0 is no limit; `TimedOut` else, the tool killed."""
    process = await begin(argv, env=env, stdin=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(timeout_s or None):
            out, err = await asyncio.gather(_all(process.stdout, limit_bytes), _all(process.stderr, limit_bytes))
            await process.wait()
    except TimeoutError:
        raise TimedOut(Path(argv[0]).name, timeout_s) from None
    finally:
        status = await finish(process)
    return Completed(status, out, err)


async def _all(stream: asyncio.StreamReader | None, limit_bytes: int) -> bytes:
    data = bytearray()
    while stream and (chunk := await stream.read(_CHUNK)):
        data += chunk[: limit_bytes - len(data)]
    return bytes(data)


def leave(argv: Sequence[str], *, stdout_path: str, env: Mapping[str, str] | None = None) -> None:
    """A child that outlives us and writes to a file, a FIFO or, on Windows, a named pipe (``//./pipe/…``) that somebody reads. Never blocks."""
    try:
        output = _output(stdout_path)
        try:
            child = subprocess.Popen(list(argv), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL, env=env, **_APART)
        finally:
            os.close(output)
    except OSError as error:
        raise Unsupported(f"{argv[0]} cannot be run: {error.strerror}", hint="see that it is installed") from error
    threading.Thread(target=child.wait, daemon=True).start()  # it is not to stay a zombie as long as we live


def _output(path: str) -> int:
    """Of a FIFO both ends: its reader may be late, or come back, and the writer then waits for it instead of dying."""
    if path == "/dev/null":
        return os.open(os.devnull, os.O_WRONLY)
    is_fifo = os.name == "posix" and Path(path).is_fifo()
    return os.open(path, os.O_RDWR if is_fifo else os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
