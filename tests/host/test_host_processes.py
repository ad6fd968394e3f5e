"""Processes, sessions, pidfds and log ends on the machine's own kernel."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from zlayer_driver.errors import InvalidSpec, TimedOut, Unsupported
from zlayer_driver.host.logs import log_ends
from zlayer_driver.host.pidfd import PidFd, ProcessId, identify
from zlayer_driver.host.processes import capture, children, command_lines, reap, spawn
from zlayer_driver.host.session import Session

pytestmark = [pytest.mark.needs("linux"), pytest.mark.usefixtures("no_fd_leak")]


async def test_capture_tells_code_and_streams() -> None:
    done = await capture(["sh", "-c", "printf out; printf err >&2; exit 7"])
    assert (done.status, done.stdout, done.stderr) == (7, b"out", b"err")


async def test_capture_keeps_to_its_limit_and_reads_on() -> None:
    done = await capture(["sh", "-c", "head -c 3000000 /dev/zero; exit 3"], limit_bytes=1000)
    assert (done.status, len(done.stdout)) == (3, 1000)


async def test_capture_does_not_wait_for_grandchildren() -> None:
    done = await capture(["sh", "-c", "sleep 1000 & echo $!"], timeout_s=20)
    os.kill(int(done.stdout), signal.SIGKILL)


async def test_capture_ends_what_takes_too_long() -> None:
    with pytest.raises(TimedOut, match=r"^sleep took longer than 0.05 s$"):
        await capture(["sleep", "1000"], timeout_s=0.05)


async def test_a_missing_program_leaves_nothing_open() -> None:
    with pytest.raises(Unsupported, match="/no/such/program cannot be run"):
        await capture(["/no/such/program"])


async def test_children_inherit_nothing_but_what_is_named() -> None:
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    os.set_inheritable(writer, True)
    done = await capture([sys.executable, "-c", "import os; print(sorted(os.listdir('/proc/self/fd')))"])
    os.close(reader)
    os.close(writer)
    assert done.stdout.split() == [b"['0',", b"'1',", b"'2',", b"'3']"]


async def test_a_cancelled_wait_ends_children_first() -> None:
    reader, writer = os.pipe()
    child = spawn(["sh", "-c", "sleep 1000 & echo begun; wait $!; exit 9"], stdout=writer)
    os.close(writer)
    assert await asyncio.to_thread(os.read, reader, 100) == b"begun\n"
    os.close(reader)
    (grandchild,) = children(child.pid)
    waiting = asyncio.create_task(reap(child, grace_s=20))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (child.returncode, identify(grandchild)) == (9, None)


async def test_sessions_that_cannot_begin_leave_nothing_open() -> None:
    with pytest.raises(ValueError, match="null byte"):
        Session.start(["echo", "a\0b"], tty=False)
    with pytest.raises(Unsupported, match="/no/such/program cannot be run"):
        Session.start(["/no/such/program"], tty=True)
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(Unsupported, match="/no/such/program cannot be run"):
        await Session.on_terminal(["/no/such/program"], given_by=theirs, to=ours, pass_fds=[])


async def test_a_session_whose_child_makes_no_terminal_ends_with_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        session = await Session.on_terminal(["sh", "-c", "exit 3"], given_by=theirs, to=ours, pass_fds=[theirs.fileno()])
    assert [chunk async for chunk in session.output()] == []
    with pytest.raises(BrokenPipeError):
        await session.write(b"x")
    assert await session.status == 3
    await session.close()


async def test_a_process_is_told_from_a_later_one_with_its_pid() -> None:
    child = spawn(["sleep", "1000"])
    process = identify(child.pid)
    assert process is not None
    assert PidFd.open(ProcessId(child.pid, process.start_ticks - 1)) is None
    pidfd = PidFd.open(process)
    assert pidfd is not None
    with pidfd:
        assert not pidfd.ended()
        assert pidfd.send(signal.SIGTERM)
        await asyncio.gather(pidfd.wait(), pidfd.wait())
        assert child.wait() == -signal.SIGTERM
        assert not pidfd.send(signal.SIGTERM)
        assert pidfd.wait_status() in (None, signal.SIGTERM)  # kernels before 6.15 do not tell
    assert PidFd.open(process) is None


async def test_closing_a_pidfd_lets_its_waiters_go() -> None:
    child = spawn(["sleep", "1000"])
    pidfd = PidFd(os.pidfd_open(child.pid))
    waiting = asyncio.create_task(pidfd.wait())
    await asyncio.sleep(0)
    pidfd.close()
    pidfd.close()
    await waiting
    child.kill()
    child.wait()


def test_names_of_processes_may_hold_anything(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    child = spawn([str(program), "1000"])
    process = identify(child.pid)
    assert process is not None
    assert process.start_ticks > 1
    assert any(pid == child.pid and argv[-1] == b"1000" for pid, argv in command_lines())
    child.kill()
    child.wait()
    assert identify(child.pid) is None


def test_log_ends_of_every_kind(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("kept\n")
    with log_ends(str(tmp_path / "fifo"), str(tmp_path / "file")) as ends:
        os.write(ends.stdout, b"to fifo")
        os.write(ends.stderr, b"to file\n")
        assert os.read(ends.spares[0], 100) == b"to fifo"
        assert len(ends.spares) == 1
    assert (tmp_path / "file").read_text() == "kept\nto file\n"
    with log_ends("/dev/null", str(tmp_path / "new")) as ends:
        os.write(ends.stdout, b"x")
        assert ends.spares == ()
    assert (tmp_path / "new").exists()


def test_a_log_that_cannot_be_opened_leaves_nothing_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidSpec, match="/no/such/file"), log_ends(str(tmp_path / "fifo"), "/no/such/file"):
        pass
