"""What a supervisor takes for the container of a VM: starts QEMU, copies the guest's output, passes signals on, ends as the guest's process did.

A program of its own (``python -m``) that imports the standard library alone. `main` is called as an OCI runtime is, with the one verb
``create``: it comes back when the guest has booted and made the container's root, and leaves the monitor behind. It finds in the bundle

::

    vm.json             the command lines of QEMU and virtiofsd, control groups to enter, and timeouts in seconds
    guest.setup         payload of the agent's SETUP frame
    guest.start         payload of the START frame of the container's own process

and leaves there

::

    agent.sock          frames for whoever connects: an empty START runs the container's process, any other a further command
    started             once the container's process may run
    oom                 once the guest has run out of memory
    lost                why it cannot be told how the container's process ended
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from zlayer_driver.guest.frames import CREDIT, EXIT, NUMBER, WINDOW, BrokenFrames, Frame, Kind, Parser, pack

_CONSOLE_BYTES = 1 << 14
_LOST_CODE = 255
_LAST_CHANNEL = 0xFFFF
_NOT_PASSED_ON = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}


class Output:
    """One of our standard streams. The guest gets credit for what its reader has taken; `drained` is set while nothing is held."""

    def __init__(self, fd: int, credit: Callable[[int], None]) -> None:
        self._fd = fd
        self._credit = credit
        self._held = bytearray()
        self.drained = asyncio.Event()
        self.drained.set()
        os.set_blocking(fd, False)

    def feed(self, data: bytes) -> None:
        if len(self._held) + len(data) > WINDOW:
            raise BrokenFrames("more output than the guest had credit for")
        self._held += data
        self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._held:
            try:
                done = os.write(self._fd, self._held)
            except BlockingIOError:
                self.drained.clear()
                loop.add_writer(self._fd, self._flush)
                return
            except OSError:  # a full disk, a reader that will never be back: as with any program, that output is lost
                done = len(self._held)
            del self._held[:done]
            self._credit(done)
        if not self.drained.is_set():
            loop.remove_writer(self._fd)
            self.drained.set()


@dataclass(slots=True)
class Ending:
    """How to end: by a signal where there is one. ``lost`` says why, where nobody can know how the container's process ended."""

    code: int = _LOST_CODE
    signal: int = 0
    lost: str = ""


class Monitor:
    """Of one VM, for its whole life. The bundle is the working directory."""

    def __init__(self, plan: dict[str, Any], report: Callable[[str], None]) -> None:
        self._plan = plan
        self._report = report  # the outcome of the boot, once: empty is success
        self._ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._heard = asyncio.Event()
        self._clients: dict[int, asyncio.StreamWriter | None] = {}
        self._changes: set[int] = set()  # channels on which no process runs: DONE is the guest's last word there
        self._runner: asyncio.StreamWriter | None = None
        self._console = bytearray()
        self._booted = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._outputs = {
            Kind.STDOUT: Output(1, lambda count: self._send(Kind.CREDIT, CREDIT.pack(0, count))),
            Kind.STDERR: Output(2, lambda count: self._send(Kind.CREDIT, CREDIT.pack(1, count))),
        }

    async def run(self) -> Ending:
        """Until the container's process has ended and its output is written, or the guest is lost."""
        loop = asyncio.get_running_loop()
        for number in signal.valid_signals() - _NOT_PASSED_ON:
            loop.add_signal_handler(number, self._pass_on, number)
        ours, theirs = socket.socketpair()
        for group in self._plan["groups"]:
            _enter(group)
        share = self._share()
        console, writer = os.pipe()
        qemu = _spawn(self._plan["qemu"], output=writer, control=theirs)
        loop.add_reader(console, self._hear_console, console)
        guest, self._guest = await asyncio.open_connection(sock=ours)
        self._begin(self._listen(guest, qemu))
        self._begin(self._boot_in_time())
        try:
            return await self._ending
        finally:
            for task in self._tasks:
                task.cancel()
            for process in (qemu, *share):
                process.kill()
                process.wait()

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        """A fault of ours in it must end the VM, and be told."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._lose(f"its monitor failed: {error!r}")

    def _share(self) -> list[subprocess.Popen[bytes]]:
        """The daemon for the host's directories, listening already, so that QEMU need not wait for it."""
        if not self._plan["virtiofsd"]:
            return []
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("share.sock")
            listener.listen(1)
            return [_spawn(self._plan["virtiofsd"], output=subprocess.DEVNULL, control=listener)]

    def _send(self, kind: Kind, payload: bytes = b"", *, channel: int = 0) -> None:
        self._guest.write(pack(kind, payload, channel=channel))

    def _pass_on(self, number: int) -> None:
        if self._booted:
            self._send(Kind.SIGNAL, NUMBER.pack(number))
        elif number in (signal.SIGTERM, signal.SIGINT):
            self._lose("it was stopped while it booted")

    def _lose(self, reason: str) -> None:
        if not self._ending.done():
            self._ending.set_result(Ending(lost=reason))

    def _hear_console(self, console: int) -> None:
        """Keeps the last of what QEMU and the guest's kernel say, however much they do."""
        said = os.read(console, 1 << 16)
        if not said:
            asyncio.get_running_loop().remove_reader(console)
        self._console = (self._console + said)[-_CONSOLE_BYTES:]

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._console.decode("utf-8", "replace").splitlines() if line.strip()]
        told = [line for line in lines if "Kernel panic" in line][-1:] or lines[-3:]
        return f"; the last of its console: {' | '.join(told)}" if told else ""

    async def _listen(self, guest: asyncio.StreamReader, qemu: subprocess.Popen[bytes]) -> None:
        parser = Parser()
        try:
            while data := await guest.read(1 << 16):
                self._heard.set()
                for frame in parser.feed(data):
                    self._take(frame)
        except BrokenFrames as error:
            self._lose(f"the guest does not keep to the protocol: {error}")
        except ConnectionError:
            pass  # QEMU is gone
        status = await asyncio.to_thread(qemu.wait)
        if self._ending.done():
            return
        if status < 0:
            self._ending.set_result(Ending(128 - status, -status))
        self._lose(f"the guest ended before the container did{self._last_words()}")

    def _take(self, frame: Frame) -> None:
        if frame.channel:
            self._hand_out(frame)
            return
        match frame.kind:
            case Kind.READY:
                self._send(Kind.SETUP, Path("guest.setup").read_bytes())
            case Kind.DONE | Kind.FAILED if not self._booted:
                self._end_boot(frame)
            case Kind.DONE | Kind.FAILED if self._runner:
                if frame.kind is Kind.FAILED:
                    Path("started").unlink(missing_ok=True)
                self._runner.write(pack(frame.kind, frame.payload))
                self._runner = None
            case Kind.STDOUT | Kind.STDERR:
                self._outputs[frame.kind].feed(frame.payload)
            case Kind.EXIT:
                self._begin(self._end(*frame.unpack(EXIT)))
            case _:
                pass

    def _end_boot(self, frame: Frame) -> None:
        if frame.kind is Kind.FAILED:
            number, what = frame.failure()
            self._lose(f"the guest could not {what}: {os.strerror(number)}")
            return
        self._booted = True
        self._begin(self._watch_pulse())
        self._begin(self._open_doors())

    async def _open_doors(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, "agent.sock")
        self._report("")

    async def _boot_in_time(self) -> None:
        await asyncio.sleep(self._plan["boot_timeout_s"])
        if not self._booted:
            self._lose(f"the guest has not booted within {self._plan['boot_timeout_s']:g} s{self._last_words()}")

    async def _watch_pulse(self) -> None:
        """A guest that answers nothing for so long never will."""
        limit_s = self._plan["hang_timeout_s"]
        while True:
            self._heard.clear()
            self._send(Kind.PING)
            try:
                async with asyncio.timeout(limit_s):
                    await self._heard.wait()
            except TimeoutError:
                self._lose(f"the guest has not answered for {limit_s:g} s{self._last_words()}")
                return
            await asyncio.sleep(limit_s / 2)

    async def _end(self, code: int, number: int, oom: int) -> None:
        """Output before the end: whoever sees the end sees all of the output."""
        for output in self._outputs.values():
            await output.drained.wait()
        if oom:
            _mark("oom")
        if not self._ending.done():
            self._ending.set_result(Ending(code, number))

    # Whoever connects: the backend, for the container's process, further commands and usage.

    def _hand_out(self, frame: Frame) -> None:
        writer = self._clients.get(frame.channel)
        if frame.kind in (Kind.EXIT, Kind.FAILED, Kind.PONG) or (frame.kind is Kind.DONE and frame.channel in self._changes):
            self._clients.pop(frame.channel, None)
            self._changes.discard(frame.channel)
        if writer is not None:
            writer.write(pack(frame.kind, frame.payload))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser, channel = Parser(), 0
        try:
            while data := await reader.read(1 << 16):
                for frame in parser.feed(data):
                    if frame.kind is Kind.START and not frame.payload:
                        self._run(writer)
                    elif not channel:
                        channel = self._open(writer)
                        if frame.kind is Kind.CHANGE:
                            self._changes.add(channel)
                        self._send(frame.kind, frame.payload, channel=channel)
                    elif self._clients.get(channel) is writer:
                        self._send(frame.kind, frame.payload, channel=channel)
        except (BrokenFrames, ConnectionError):
            pass
        finally:
            if self._clients.get(channel) is writer:
                self._clients[channel] = None  # its number is free once the guest says so
                self._send(Kind.CLOSE, channel=channel)
            writer.close()

    def _open(self, writer: asyncio.StreamWriter) -> int:
        channel = next(number for number in range(1, _LAST_CHANNEL + 1) if number not in self._clients)
        self._clients[channel] = writer
        return channel

    def _run(self, writer: asyncio.StreamWriter) -> None:
        """Once, and only for a caller that still lives: a killed one's successor must be able to tell that this never ran."""
        poller = select.poll()
        poller.register(writer.get_extra_info("socket"), select.POLLRDHUP)
        if poller.poll(0) or Path("started").exists():
            return
        Path("started").touch()
        self._runner = writer
        self._send(Kind.START, Path("guest.start").read_bytes())


def _spawn(argv: list[str], *, output: int, control: socket.socket) -> subprocess.Popen[bytes]:
    """Dies with us, by whatever we die; its command line names the fd of ``control`` as ``{control}``."""
    command = ["setpriv", "--pdeathsig", "KILL", "--", *(part.replace("{control}", str(control.fileno())) for part in argv)]
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(control.fileno(),))
    finally:
        control.close()
        if output >= 0:
            os.close(output)


def _enter(group: str) -> None:
    Path(group, "cgroup.procs").write_text("0")


def _mark(name: str, text: str = "") -> None:
    Path(name).write_text(text)


async def _run(plan: dict[str, Any], report: Callable[[str], None]) -> Ending:
    try:
        return await Monitor(plan, report).run()
    except OSError as error:
        return Ending(lost=str(error))


def _stay(bundle: str, outcome: int) -> NoReturn:
    """The monitor's whole life, in the process that was forked for it."""
    os.chdir(bundle)
    os.umask(0o077)

    waiting = [outcome]

    def report(text: str) -> None:
        """Once; what is lost later is told by the file alone."""
        if waiting:
            with suppress(BrokenPipeError), os.fdopen(waiting.pop(), "w") as told:
                told.write(text or "\n")

    ending = asyncio.run(_run(json.loads(Path("vm.json").read_bytes()), report))
    if ending.lost:
        _mark("lost", ending.lost)
        report(ending.lost)
    if ending.signal:
        if ending.signal not in _NOT_PASSED_ON:
            signal.signal(ending.signal, signal.SIG_DFL)
        os.kill(os.getpid(), ending.signal)
    os._exit(ending.code)


def main(argv: list[str]) -> int:
    """``[--log FILE] create --bundle DIR --pid-file FILE ID``; the reason of a failure goes to the log as a runtime writes it."""
    option = dict(pairwise(argv))
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _stay(option["--bundle"], writer)
    os.close(writer)
    with os.fdopen(reader) as told:
        outcome = told.read() or "the monitor of the VM died"
    if outcome != "\n":
        Path(option["--log"]).write_text(json.dumps({"level": "error", "msg": outcome}))
        return 1
    Path(option["--pid-file"]).write_text(str(pid))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
