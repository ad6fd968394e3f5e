"""The monitor beside guests that misbehave: the real program, with a script in QEMU's place that speaks, or does not speak, the protocol."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from zlayer_driver.guest.frames import EXIT, WINDOW, Frame, Kind, Parser, pack

pytestmark = pytest.mark.needs("linux", "setpriv")

_BEGIN = """
import os, socket, sys, time
from zlayer_driver.guest.frames import *
host, parser, pending = socket.socket(fileno=int(sys.argv[1])), Parser(), []
def hear():
    while not pending:
        data = host.recv(1 << 16)
        if not data: sys.exit()
        pending.extend(frame for frame in parser.feed(data) if frame.kind is not Kind.PING)
    return pending.pop(0)
def tell(kind, payload=b"", channel=0):
    host.sendall(pack(kind, payload, channel=channel))
"""
_BOOT = "tell(Kind.READY, b'6.1'); assert hear().kind is Kind.SETUP; tell(Kind.DONE)\n"
_DEADLINE_MS = 20_000


class Vm:
    """A bundle, and the monitor that ``create`` left behind in it, if it did."""

    def __init__(self, bundle: Path, script: str, **plan: object) -> None:
        self.bundle = bundle
        self.pidfd = -1
        guest = bundle / "guest.py"
        guest.write_text(_BEGIN + script)
        qemu = [sys.executable, str(guest), "{control}"]
        (bundle / "vm.json").write_text(
            json.dumps({"qemu": qemu, "virtiofsd": [], "groups": [], "boot_timeout_s": 15, "hang_timeout_s": 15} | plan)
        )
        for name in ("guest.setup", "guest.start"):
            (bundle / name).write_bytes(b"hname\0")

    def create(self) -> int:
        command = [sys.executable, "-m", "zlayer_driver.guest.monitor", "--log", str(self.bundle / "log")]
        command += ["create", "--bundle", str(self.bundle), "--pid-file", str(self.bundle / "pid"), "name"]
        with (self.bundle / "out").open("wb") as out:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False, start_new_session=True)
        if done.returncode == 0:
            with suppress(ProcessLookupError):  # it has ended, and its new parent has reaped it
                self.pidfd = os.pidfd_open(int((self.bundle / "pid").read_text()))
        return done.returncode

    def ended(self) -> str:
        """Waits for the monitor's end; why the guest was lost."""
        if self.pidfd >= 0:
            poller = select.poll()
            poller.register(self.pidfd, select.POLLIN)
            assert poller.poll(_DEADLINE_MS), "the monitor did not end"
        with suppress(FileNotFoundError):
            return (self.bundle / "lost").read_text()
        return ""

    def ask(self, request: bytes) -> list[Frame]:
        """The answers, to the last."""
        found: list[Frame] = []
        directory = os.open(self.bundle, os.O_PATH)
        parser = Parser()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_DEADLINE_MS / 1000)
            connection.connect(f"/proc/self/fd/{directory}/agent.sock")  # whose own path may be too long for an address
            os.close(directory)
            connection.sendall(request)
            while (not found or found[-1].kind not in (Kind.DONE, Kind.EXIT)) and (data := connection.recv(1 << 16)):
                found += parser.feed(data)
        return found

    def close(self) -> None:
        if self.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            os.close(self.pidfd)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Callable[..., Vm]]:
    made: list[Vm] = []

    def make(script: str, **plan: object) -> Vm:
        made.append(Vm(tmp_path, script, **plan))
        return made[-1]

    yield make
    for vm in made:
        vm.close()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sys.exit('out of luck')", "the guest ended before the container did; the last of its console: out of luck"),
        ("host.sendall(b'\\xff' * 64); hear()", "the guest does not keep to the protocol: frame of kind 255"),
        ("tell(Kind.READY); hear(); tell(Kind.FAILED, NUMBER.pack(2) + b'mount it'); hear()", "the guest could not mount it: No such file"),
        ("tell(Kind.READY); hear(); tell(Kind.FAILED, b''); hear()", "FAILED frame without a number"),
    ],
)
def test_guest_that_does_not_boot_fails_the_create(guest: Callable[..., Vm], script: str, reason: str) -> None:
    vm = guest(script)
    assert vm.create() == 1
    assert reason in json.loads((vm.bundle / "log").read_text())["msg"]


def test_guest_that_stays_silent_is_not_waited_for(guest: Callable[..., Vm]) -> None:
    vm = guest("hear()", boot_timeout_s=0.2)
    assert vm.create() == 1
    assert "has not booted within 0.2 s" in json.loads((vm.bundle / "log").read_text())["msg"]


def test_missing_emulator_is_said(guest: Callable[..., Vm]) -> None:
    vm = guest("", qemu=["/no/such/emulator"])
    assert vm.create() == 1
    assert "/no/such/emulator" in json.loads((vm.bundle / "log").read_text())["msg"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("host.sendall(b'\\0\\0\\0\\x7f' + bytes(8)); hear()", "does not keep to the protocol"),
        ("tell(Kind.EXIT, b'short'); hear()", "EXIT frame of 5 bytes"),
        ("os._exit(0)", "the guest ended before the container did"),
    ],
)
def test_guest_that_breaks_off_is_lost_and_told(guest: Callable[..., Vm], script: str, reason: str) -> None:
    """Whether the create is over by then or not."""
    vm = guest(_BOOT + script)
    vm.create()
    assert reason in vm.ended()


def test_guest_that_floods_beyond_its_credit_is_lost(guest: Callable[..., Vm]) -> None:
    vm = guest(f"{_BOOT}for _ in range({(WINDOW >> 15) + 4}): tell(Kind.STDOUT, bytes(1 << 15))\nwhile True: hear()")
    os.mkfifo(vm.bundle / "out")
    nobody = os.open(vm.bundle / "out", os.O_RDONLY | os.O_NONBLOCK)
    try:
        vm.create()
        assert "more output than the guest had credit for" in vm.ended()
    finally:
        os.close(nobody)


def test_frames_for_nobody_are_passed_over_and_output_is_whole(guest: Callable[..., Vm]) -> None:
    script = "tell(Kind.STDOUT, b'for nobody', channel=9); tell(Kind.EXIT, b'', channel=9); tell(Kind.STDOUT, b'last words')\n"
    script += f"tell(Kind.EXIT, bytes({list(EXIT.pack(5, 0, 1))})); hear(); hear()"
    vm = guest(_BOOT + script)
    assert vm.create() == 0
    assert vm.ended() == ""
    assert (vm.bundle / "out").read_bytes() == b"last words"
    assert (vm.bundle / "oom").exists()


def test_number_of_a_channel_is_free_again_after_the_guests_last_word(guest: Callable[..., Vm]) -> None:
    script = "last = {Kind.CHANGE: Kind.DONE, Kind.START: Kind.EXIT}\nwhile True:\n frame = hear()\n if frame.kind in last:\n"
    script += "  tell(Kind.STDOUT, str(frame.channel).encode(), channel=frame.channel); tell(last[frame.kind], channel=frame.channel)"
    vm = guest(_BOOT + script)
    assert vm.create() == 0
    for kind in (Kind.CHANGE, Kind.START, Kind.CHANGE):
        assert [frame.payload for frame in vm.ask(pack(kind, b"x"))] == [b"1", b""]


def test_emulator_killed_from_outside_takes_the_monitor_with_it(guest: Callable[..., Vm]) -> None:
    vm = guest(_BOOT + "os.kill(os.getpid(), 9)")
    assert vm.create() == 0
    assert vm.ended() == ""


def test_every_kind_has_the_number_that_the_agent_gives_it() -> None:
    """``agent.h`` counts on from each number that it names."""
    header = (Path(__file__).parents[2] / "zlayer_driver/guest/agent.h").read_text()
    body = header.split("enum kind {")[1].split("};")[0]
    number, found = 0, {}
    for word in body.replace("/* to the guest */", "").replace("/* to the host */", "").replace("\n", " ").split(","):
        name, _, given = word.strip().partition(" = ")
        if name:
            number = int(given) if given else number + 1
            found[name] = number
    assert found == {kind.name: kind.value for kind in Kind}
