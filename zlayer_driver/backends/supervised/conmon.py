"""Creating a container under conmon, which outlives the driver: it is the parent of the container's init and writes down how that ended."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.errors import CreateFailed, TimedOut
from zlayer_driver.host.logs import LogEnds
from zlayer_driver.host.pidfd import ProcessId, identify
from zlayer_driver.host.processes import reap, spawn

_CREATE_TIMEOUT_S = 60.0
_LIMIT = 1 << 16


@dataclass(frozen=True, slots=True)
class Supervised:
    """A container that was created and waits to be started."""

    init: ProcessId
    supervisor: ProcessId


def conmon_path() -> str | None:
    return shutil.which("conmon")


class Held:
    """A conmon that is ready, and waits for the word to create its container; what that takes may be made meanwhile.

    Owns its process until the word is given, and its ends of two pipes. A conmon whose driver dies takes that for the word: it is then one of
    the strays that whoever removes the container ends.
    """

    def __init__(self, bundle: Bundle, process: subprocess.Popen[bytes], word: int, answer: int) -> None:
        self._bundle = bundle
        self._process = process
        self._word = word
        self._answer = answer

    async def create(self) -> Supervised:
        """`CreateFailed` with what conmon said; the runtime's own words are in its log."""
        with suppress(BrokenPipeError):  # it has ended, and so has nothing to answer
            os.write(self._word, b"\n")
        try:
            # The process that we started forks conmon itself and goes; when `create` is done is told on the pipe alone.
            async with asyncio.timeout(_CREATE_TIMEOUT_S):
                await reap(self._process)
                answer = await _answer(self._answer)
        except TimeoutError:
            raise TimedOut(f"the creation of container {self._bundle.id!r}", _CREATE_TIMEOUT_S) from None
        return _understood(self._bundle, answer)

    def close(self) -> None:
        """Ends a conmon that never got the word: killed first, for the end of the pipe is the word too."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for fd in (self._word, self._answer):
            os.close(fd)


def hold(bundle: Bundle, runtime: str, runtime_args: tuple[str, ...], ends: LogEnds) -> Held:
    """Starts it, with ``ends`` as the container's output. The bundle need only have its directory."""
    with ExitStack() as ours, ExitStack() as theirs:
        waiting, word = _pipe()
        theirs.callback(os.close, waiting)
        ours.callback(os.close, word)
        answer, answering = _pipe()
        theirs.callback(os.close, answering)
        ours.callback(os.close, answer)
        process = spawn(
            _argv(bundle, runtime, runtime_args),
            stdout=ends.stdout,
            stderr=ends.stderr,
            env={"PATH": os.environ.get("PATH", os.defpath), "_OCI_STARTPIPE": str(waiting), "_OCI_SYNCPIPE": str(answering)},
            pass_fds=(waiting, answering, *ends.spares),
            cwd=bundle.dir,  # where it leaves its own notes
        )
        ours.pop_all()
    return Held(bundle, process, word, answer)


def _pipe() -> tuple[int, int]:
    return os.pipe2(os.O_CLOEXEC)


def _argv(bundle: Bundle, runtime: str, runtime_args: tuple[str, ...]) -> list[str]:
    told = [part for arg in runtime_args for part in ("--runtime-arg", arg)]
    return [
        conmon_path() or "conmon",
        *("--api-version", "1", "-c", bundle.id, "-u", bundle.id, "-n", bundle.id),
        *("-r", runtime, "-b", str(bundle.dir), "-p", str(bundle.dir / "init.pid"), "-P", str(bundle.dir / "conmon.pid")),
        *("-l", "passthrough", "--exit-dir", str(bundle.exits), "--socket-dir-path", str(bundle.dir), "--log-level", "error"),
        *told,
    ]


async def _answer(reader: int) -> bytes:
    """The one line that conmon writes once the runtime's ``create`` is done; empty if it went without a word."""
    loop = asyncio.get_running_loop()
    os.set_blocking(reader, False)
    data = b""
    readable = asyncio.Event()
    loop.add_reader(reader, readable.set)
    try:
        while not data.endswith(b"\n") and len(data) < _LIMIT:
            await readable.wait()
            readable.clear()
            with suppress(BlockingIOError):
                chunk = os.read(reader, _LIMIT)
                if not chunk:
                    break
                data += chunk
    finally:
        loop.remove_reader(reader)
    return data


def _understood(bundle: Bundle, answer: bytes) -> Supervised:
    try:
        told = json.loads(answer)
        pid, message = int(told["data"]), str(told.get("message", ""))
    except (ValueError, KeyError, TypeError):
        pid, message = -1, f"conmon answered {answer[:200]!r}" if answer else "conmon went without an answer"
    if pid <= 0:
        raise CreateFailed(bundle.id, message.strip() or "the runtime gave no reason")
    init = identify(pid)
    supervisor = identify(supervisor_pid(bundle) or 0)
    if init is None or supervisor is None:
        raise CreateFailed(bundle.id, "it ended before it was started", recoverable=True)
    return Supervised(init, supervisor)


def supervisor_pid(bundle: Bundle) -> int | None:
    with suppress(OSError, ValueError):
        return int(Path(bundle.dir / "conmon.pid").read_text())
    return None
