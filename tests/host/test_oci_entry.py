"""A further command in a container without its runtime is in every respect what its runtime would have made of it."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host.oci_lab import OneImage, backend, bundle_of, handle, shell
from zlayer_driver.backends import oci
from zlayer_driver.errors import NotFound
from zlayer_driver.host import enter
from zlayer_driver.host.libc import libc
from zlayer_driver.host.pidfd import PidFd
from zlayer_driver.host.processes import children
from zlayer_driver.host.seccomp_filter import Uncompiled, compiled
from zlayer_driver.model import Handle, Network, Resources, Security, TaskSpec, Ulimit
from zlayer_driver.readings import ExecEvent, ExecOptions

pytestmark = [pytest.mark.needs("linux", "root", "runc", "conmon", "busybox"), pytest.mark.usefixtures("no_fd_leak")]

RT_SIGACTION = 13 if platform.machine() == "x86_64" else 134  # <asm/unistd.h>

# All that the kernel tells a process of itself, but for what is of that one process (ids, times, sizes, addresses), and where runtimes differ.
ASK = r"""
grep -Ev '^(SigIgn|SigQ|Pid|Tgid|NSpid|NSpgid|NStgid|NSsid|PPid|Vm|Rss|.*ctxt_switches|HugetlbPages|Cpus_allowed|Mems_allowed|FDSize|THP|x86_)' /proc/self/status
cat /proc/self/limits /proc/self/cgroup /proc/self/sessionid
for each in mnt net pid ipc uts cgroup user; do readlink /proc/self/ns/$each; done
ls -l /proc/self/cwd /proc/self/root | awk '{print $NF}'
cut -d' ' -f7 /proc/self/stat
umask
env | sort
ls /proc/self/fd
"""

SPECS = {
    "plain": shell("one", "exec sleep 1000"),
    "user": shell("one", "exec sleep 1000", user="worker", work_dir="/srv", env={"A": "a b"}),
    "limits": shell(
        "one",
        "exec sleep 1000",
        ulimits=(Ulimit("fsize", 1 << 20, 1 << 21), Ulimit("core", 0, None)),  # a Go program changes nofile before it reads it
        resources=Resources(memory_bytes=64 << 20, pids=20, cpuset_cpus="1"),
    ),
    "renounced": shell("one", "exec sleep 1000", security=Security(no_new_privileges=True, cap_drop=("all",), cap_add=("net_admin",))),
    "privileged": shell("one", "exec sleep 1000", security=Security(privileged=True)),
    "unconfined": shell("one", "exec sleep 1000", security=Security(seccomp="unconfined")),
    "shared": shell("one", "exec sleep 1000", security=Security(host_namespaces=("pid", "ipc", "uts")), network=Network(mode="none")),
}


@contextmanager
def without_entry() -> Iterator[None]:
    """As on an installation that was built without a C compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oci, "is_usable", lambda: False)
        yield


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("options", [ExecOptions(), ExecOptions(user="1000:30", work_dir="/tmp", env={"B": "b"})], ids=["same", "other"])
async def test_it_is_what_the_runtime_makes(root: Path, images: OneImage, spec: TaskSpec, options: ExecOptions) -> None:
    node = backend(root, images)
    task = handle("one", await node.start(spec))
    ours = await node.exec(task, ["/bin/sh", "-c", ASK], timeout_s=30, options=options)
    with without_entry():
        theirs = await node.exec(task, ["/bin/sh", "-c", ASK], timeout_s=30, options=options)
    await node.destroy(task)
    assert theirs.stdout.count(b"\n") > 60
    assert ours.stdout.decode().splitlines() == theirs.stdout.decode().splitlines()
    assert ours == theirs


async def test_what_runtimes_make_in_different_ways_is_as_the_container_has_it(root: Path, images: OneImage) -> None:
    """Crun's commands have no part in the score; runc's, as Go programs, may lose their soft limit of files. Both pass on which signals are ignored."""
    node = backend(root, images)
    spec = shell("one", "exec sleep 1000", resources=Resources(oom_score_adj=300), ulimits=(Ulimit("nofile", 100, 200),))
    task = handle("one", await node.start(spec))
    asked = "ulimit -n; cat /proc/1/oom_score_adj /proc/self/oom_score_adj"
    result = await node.exec(task, ["sh", "-c", asked], timeout_s=30)
    await node.destroy(task)
    assert result.stdout.split() == [b"100", b"300", b"300"]


@pytest.mark.parametrize("tty", [False, True])
async def test_it_holds_nothing_of_the_hosts(root: Path, images: OneImage, tty: bool) -> None:
    """The host's /dev/null could be changed through an fd, its terminals are not in the container, and its keys are not the container's."""
    node = backend(root, images)
    task = handle("one", await node.start(shell("one", "exec sleep 1000")))
    script = "for each in 0 1 2; do test -p /proc/self/fd/$each || readlink /proc/self/fd/$each; done; test ! -t 0 || ls $(tty)"
    events = [event async for event in await node.stream_exec(task, ["sh", "-c", script], tty=tty)]
    await node.destroy(task)
    assert b"".join(event.data for event in events).split() == ([b"/dev/pts/0"] * 4 if tty else [])


@pytest.mark.parametrize("tty", [False, True])
async def test_its_streams_are_its_users(root: Path, images: OneImage, tty: bool) -> None:
    node = backend(root, images)
    task = handle("one", await node.start(shell("one", "exec sleep 1000", user="worker")))
    script = "id -u; echo out >/proc/self/fd/1; echo err >/proc/self/fd/2; test ! -t 0 || echo tty >/dev/tty"
    events = [event async for event in await node.stream_exec(task, ["sh", "-c", script], tty=tty)]
    await node.destroy(task)
    assert sorted(b"".join(event.data for event in events).split()) == sorted([b"1000", b"out", b"err", *([b"tty"] if tty else [])])


async def test_input_without_a_session_is_empty(root: Path, images: OneImage) -> None:
    node = backend(root, images)
    task = handle("one", await node.start(shell("one", "exec sleep 1000")))
    result = await node.exec(task, ["sh", "-c", "test -p /proc/self/fd/0 && cat && echo end"], timeout_s=30)
    await node.destroy(task)
    assert result.stdout == b"end\n"


async def test_signals_that_the_driver_ignores_count(root: Path, images: OneImage) -> None:
    """Also those that the C library keeps to itself, as number 32."""
    node = backend(root, images)
    task = handle("one", await node.start(shell("one", "exec sleep 1000")))
    act = struct.pack("=4Q", signal.SIG_IGN, 0, 0, 0)  # the kernel's struct sigaction
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    kept = ctypes.create_string_buffer(len(act))
    libc.syscall(RT_SIGACTION, 32, act, kept, 8)
    try:
        result = await node.exec(task, ["grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"], timeout_s=30)
    finally:
        signal.signal(signal.SIGUSR1, before)
        libc.syscall(RT_SIGACTION, 32, kept, None, 8)
    await node.destroy(task)
    assert result.stdout.split() == [b"SigBlk:", b"0" * 16, b"SigIgn:", b"0" * 16]


async def test_a_filter_may_refuse_what_gives_rights_away(root: Path, images: OneImage, tmp_path: Path) -> None:
    """Of a container that has renounced new rights: its filter is the last thing that is loaded."""
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["capset"], "action": "SCMP_ACT_ERRNO"}]}))
    node = backend(root, images)
    security = Security(no_new_privileges=True, seccomp=str(profile))
    task = handle("one", await node.start(shell("one", "exec sleep 1000", security=security)))
    result = await node.exec(task, ["grep", "Seccomp:", "/proc/self/status"], timeout_s=30)
    await node.destroy(task)
    assert result.stdout.split() == [b"Seccomp:", b"2"]


@pytest.mark.parametrize("way", ["killed", "paused", "elsewhere"])
async def test_what_cannot_be_entered_is_told(root: Path, images: OneImage, way: str) -> None:
    node = backend(root, images)
    task = handle("one", await node.start(shell("one", "exec sleep 1000")))
    match way:
        case "killed":
            await node.stop(task, timeout_s=0, signal="")
        case "paused":
            await node.pause(task)
    with pytest.raises(NotFound, match="/nowhere: No such file" if way == "elsewhere" else way if way == "paused" else "ended"):
        await node.exec(task, ["true"], timeout_s=30, options=ExecOptions(work_dir="/nowhere"))
    if way == "paused":
        await node.resume(task)
        assert (await node.exec(task, ["true"], timeout_s=30)).exit.code == 0
    await node.destroy(task)


async def begun(task: Handle, node: oci.OciBackend) -> tuple[int, int, AsyncIterator[ExecEvent]]:
    """The pids of the program and of its command, and what is still to come of both."""
    events = await node.stream_exec(task, ["sh", "-c", "echo begun; exec sleep 999"], tty=False)
    assert (await anext(events)).data == b"begun\n"
    (program,) = (pid for pid in children(os.getpid()) if b"/proc/self/fd/" in Path(f"/proc/{pid}/cmdline").read_bytes())
    (command,) = children(program)
    return program, command, events


async def test_the_command_dies_with_the_program(root: Path, images: OneImage) -> None:
    node = backend(root, images)
    task = handle("one", await node.start(shell("one", "exec sleep 1000")))
    program, command, events = await begun(task, node)
    with PidFd(os.pidfd_open(command)) as pidfd:
        os.kill(program, signal.SIGKILL)
        await pidfd.wait()
    assert [event.exit_code async for event in events] == [137]
    await node.destroy(task)


async def test_the_program_cannot_be_reached_from_the_container(root: Path, images: OneImage) -> None:
    """Not even by one that shares the host's processes and may trace them: what it could write to is a sealed copy in memory."""
    node = backend(root, images)
    security = Security(host_namespaces=("pid",), cap_add=("sys_ptrace", "dac_override"))
    task = handle("one", await node.start(shell("one", "exec sleep 1000", security=security)))
    program, _, events = await begun(task, node)
    result = await node.exec(task, ["sh", "-c", f"readlink /proc/{program}/exe; echo bad > /proc/{program}/exe"], timeout_s=30)
    assert result.stdout == b"/memfd:enter (deleted)\n"
    assert result.exit.code != 0
    os.kill(program, signal.SIGKILL)
    assert [event.exit_code async for event in events] == [137]
    await node.destroy(task)
    assert enter.PROGRAM.read_bytes().startswith(b"\x7fELF")


NOEXEC = Path("/proc/sys/vm/memfd_noexec")  # of a pid namespace
RUN_IT = """
import subprocess
from zlayer_driver.host import enter
if enter.is_usable():
    fd = enter.program()
    print(subprocess.run([f"/proc/self/fd/{fd}"], pass_fds=[fd]).returncode)
"""


@pytest.mark.skipif(not NOEXEC.exists(), reason="before Linux 6.3 all memory can be executed")
@pytest.mark.parametrize(("noexec", "told"), [(0, "125"), (1, "125"), (2, "")])
def test_where_no_memory_is_executed_the_program_is_not_usable(noexec: int, told: str) -> None:
    argv = ["unshare", "--pid", "--fork", "sh", "-c", f'echo {noexec} >{NOEXEC} && exec "$@"', "sh", sys.executable, "-c", RUN_IT]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == told


async def test_a_filter_that_only_runtimes_can_make_is_left_to_them(root: Path, images: OneImage, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}))
    node = backend(root, images)
    task = handle("one", await node.start(shell("one", "exec sleep 1000", security=Security(seccomp=str(profile)))))
    config = bundle_of(root, "one").config
    document = json.loads(config.read_bytes())
    for unknown in ("SCMP_ACT_ALLOW", "SCMP_ACT_NOTIFY"):
        document["linux"]["seccomp"]["defaultAction"] = unknown
        config.write_text(json.dumps(document))
        result = await node.exec(task, ["sh", "-c", "mkdir /tmp/new; echo $?"], timeout_s=30)
        assert (result.stdout, b"not permitted" in result.stderr) == (b"1\n", True)
    await node.destroy(task)
    with pytest.raises(Uncompiled):
        compiled(document["linux"]["seccomp"])
