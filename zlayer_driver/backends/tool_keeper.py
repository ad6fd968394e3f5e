"""Stands beside a container for as long as it lives: starts its command, passes signals on, writes down how it ended.

A program of its own, without the rest of the package, that imports the standard library alone and needs only POSIX: it takes the place of conmon
where there is none. It outlives the driver, and holds what it inherits, such as spare ends of log FIFOs.

``keep DIR`` comes back once the command runs, or has failed with the reason in ``DIR/failed``. It finds and leaves there

::

    job.json    what to run: see `tool_job.Command`
    alive       a FIFO that has a writer for as long as the keeper lives
    control     a FIFO that takes signal numbers, one a line, for the command; SIGKILL is for all that belongs to it, while it boots too
    pid         of the command
    machine.log what the machine that the command needs has said
    started     there once the command runs
    exit.json   by a rename, at the end: its exit code and signal, or why they are not known

``enter FILE`` becomes the command that a file like job.json describes, and takes the file away: 127 if there is none such, 126 if it may not be executed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

_LAST_SIGNAL = 64
_UNKNOWN_CODE = 255
_LAST_WORDS = 3
Job = dict[str, Any]
Process = subprocess.Popen[bytes]


class Failed(Exception):
    """Why a command could not be started."""


class Keeper:
    """The directory is the working directory. Every child is in a session of its own, so that its group can be killed."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._woken, waker = os.pipe()
        for end in (self._woken, waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waker)
        for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # never SIG_IGN, which children would inherit
        self._alive = _open_fifo("alive")[1]
        self._control, self._control_writer = _open_fifo("control")
        self._machine: Process | None = None
        self._killed = False

    def start(self) -> Process:
        """The command, once what it needs is there."""
        if self._job["machine"]:
            self._start_machine()
        try:
            child = _spawn(self._job, stdin=self._job["stdin"] or os.devnull)
        except Failed:
            self._end_machine()
            raise
        Path("started").touch()
        Path("pid").write_text(f"{child.pid}\n")
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):  # whoever reads the logs is to see their end when the command ends
            os.dup2(silence, stream)
        return child

    def _start_machine(self) -> None:
        with Path("machine.log").open("ab") as log:
            self._machine = _spawn({**self._job, "argv": self._job["machine"]}, stdout=log.fileno(), stderr=log.fileno())
            ready = _spawn({**self._job, "argv": self._job["ready"]}, stdout=subprocess.DEVNULL, stderr=log.fileno())
        while ready.poll() is None and self._machine.poll() is None and not self._killed:
            self._killed = signal.SIGKILL in self._hear()
        if ready.poll() != 0 or self._machine.poll() is not None:
            _kill(ready)
            self._end_machine()
            raise Failed(f"its machine did not boot{_last_words()}")

    def stay(self, child: Process) -> Job:
        """How it ended."""
        while child.poll() is None and not (self._machine and self._machine.poll() is not None):
            for number in self._hear():
                if number == signal.SIGKILL:
                    self._killed = True
                    _kill(child)
                else:
                    child.send_signal(number)
        lost_machine = child.poll() is None
        _kill(child)
        self._end_machine()
        return self._ending(child.wait(), lost_machine=lost_machine)

    def _end_machine(self) -> None:
        if self._machine:
            _kill(self._machine)
            self._machine.wait()

    def _hear(self) -> list[int]:
        """Signals to pass on; waits until a child has ended, or there are any."""
        select.select([self._woken, self._control], [], [])
        with suppress(BlockingIOError):
            os.read(self._woken, 512)
        with suppress(BlockingIOError):
            return [int(word) for word in os.read(self._control, 512).split()]
        return []

    def _ending(self, status: int, *, lost_machine: bool) -> Job:
        """A tool tells its container's end by its own exit code; that it was killed itself tells nothing, unless we did it."""
        if self._killed and status < 0:
            return {"code": 128 + signal.SIGKILL, "signal": int(signal.SIGKILL), "lost": ""}
        if lost_machine or (self._job["client"] and status < 0):
            reason = f"its machine ended before it{_last_words()}" if lost_machine else f"{self._job['argv'][0]} died of signal {-status}"
            return {"code": _UNKNOWN_CODE, "signal": 0, "lost": reason}
        code = 128 - status if status < 0 else status
        return {"code": code, "signal": code - 128 if 0 < code - 128 <= _LAST_SIGNAL else 0, "lost": ""}


def _open_fifo(name: str) -> tuple[int, int]:
    reader = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
    return reader, os.open(name, os.O_WRONLY)


def _spawn(job: Job, *, stdin: str = os.devnull, stdout: int | None = None, stderr: int | None = None) -> Process:
    try:
        with Path(stdin).open("rb") as given:
            return subprocess.Popen(
                job["argv"],
                stdin=given,
                stdout=stdout,
                stderr=stderr,
                env=job["env"],
                cwd=job["cwd"],
                user=job["user"],
                group=job["group"],
                extra_groups=job["extra_groups"],
                start_new_session=True,
            )
    except OSError as error:
        raise Failed(f"{error.filename or job['argv'][0]}: {error.strerror}") from error


def _kill(child: Process) -> None:
    """It and all that it has left in its group."""
    with suppress(ProcessLookupError, PermissionError):  # the latter is what some systems say of a group of zombies
        os.killpg(child.pid, signal.SIGKILL)


def _last_words() -> str:
    try:
        lines = Path("machine.log").read_text("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return ""
    said = " | ".join([line.strip() for line in lines if line.strip()][-_LAST_WORDS:])
    return f": {said}" if said else ""


def _stay(directory: str, outcome: int) -> NoReturn:
    os.chdir(directory)
    os.umask(0o077)
    try:
        keeper = Keeper(json.loads(Path("job.json").read_bytes()))
        child = keeper.start()
    except (Failed, OSError) as error:
        os.write(outcome, str(error).encode() or b"?")
        os._exit(1)
    os.write(outcome, b"\n")
    os.close(outcome)
    Path("exit.half").write_text(json.dumps(keeper.stay(child)))
    Path("exit.half").rename("exit.json")
    os._exit(0)


def keep(directory: str) -> int:
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        _stay(directory, writer)
    os.close(writer)
    with os.fdopen(reader) as told:
        outcome = told.read()
    if outcome == "\n":
        return 0
    Path(directory, "failed").write_text(outcome or "its keeper died")
    return 1


def enter(file: str) -> int:
    job: Job = json.loads(Path(file).read_bytes())
    Path(file).unlink()
    try:
        os.chdir(job["cwd"])
        if job["user"] is not None:
            os.setgroups(job["extra_groups"])
            os.setgid(job["group"])
            os.setuid(job["user"])
        if job["tty"]:
            _control_terminal()
        os.execvpe(job["argv"][0], job["argv"], job["env"])  # noqa: S606 # it is the command that we become
    except OSError as error:
        sys.stderr.write(f"{job['argv'][0]}: {error.strerror}\n")
        return 127 if isinstance(error, FileNotFoundError) else 126


def _control_terminal() -> None:
    """Makes the terminal that we were given ours, with a line discipline for people, without echo twice."""
    os.close(os.open(os.ttyname(0), os.O_RDWR))  # the first terminal that the leader of a session opens is its own
    modes = termios.tcgetattr(0)
    modes[0] |= termios.ICRNL
    modes[1] |= termios.OPOST
    modes[3] |= termios.ISIG | termios.ICANON
    termios.tcsetattr(0, termios.TCSANOW, modes)


def main() -> int:
    return {"keep": keep, "enter": enter}[sys.argv[1]](sys.argv[2])
