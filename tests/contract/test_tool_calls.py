"""What each backend tells its tool, to the letter, over a life that uses all of it; and that the doubles know no other words."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import pytest

from tests.contract.fifos import heard
from tests.contract.test_krun import KrunSubject
from tests.contract.test_krun import subject as krun
from tests.contract.test_seatbelt import BASE, SeatbeltSubject, program, pulled, tmp_path
from tests.contract.test_seatbelt import subject as seatbelt
from tests.contract.test_vz import VzSubject
from tests.contract.test_vz import subject as vz
from tests.contract.test_vz_linux import VzLinuxSubject
from tests.contract.test_vz_linux import subject as vz_linux
from tests.contract.tool_subject import ToolSubject, home
from tests.doubles.tools import BIN, calls
from zlayer_driver import contract
from zlayer_driver.backends.krun import KrunBackend
from zlayer_driver.backends.seatbelt import SeatbeltBackend
from zlayer_driver.backends.vz import VzBackend
from zlayer_driver.backends.vz_linux import VzLinuxBackend
from zlayer_driver.host.processes import capture
from zlayer_driver.model import Mount, Network, Resources, Security, TaskSpec, Ulimit
from zlayer_driver.readings import ExecOptions
from zlayer_driver.testing.cases import DEADLINE_S

__all__ = ["home", "krun", "program", "pulled", "seatbelt", "tmp_path", "vz", "vz_linux"]

pytestmark = pytest.mark.needs("linux", "root", "docker-registry")
SCRIPT = "echo $GREETING $WHERE; pwd; echo ready; exec sleep 1000"


def rich(subject: ToolSubject, **further: object) -> TaskSpec:
    """A task with all that every tool can be told; what it prints comes on a FIFO, as of `ToolSubject.runs`."""
    for name in ("data", "read-only"):
        (subject.root / name).mkdir(mode=0o755)
    os.mkfifo(subject.stdout_of("task"))
    spec = replace(
        subject.spec("task", SCRIPT),
        env={"DOUBLES": str(subject.home), "GREETING": "it's me", "WHERE": "/srv/data/file"},
        work_dir="/proc",
        mounts=(Mount(target="/srv/data", source=str(subject.root / "data")),),
        resources=Resources(memory_bytes=8 << 30, cpu_quota_us=250_000),
    )
    return replace(spec, **further)  # type: ignore[arg-type] # fields of a spec


def read_only(subject: ToolSubject) -> Mount:
    return Mount(target="/srv/fixed", source=str(subject.root / "read-only"), read_only=True)


async def told(subject: ToolSubject, spec: TaskSpec) -> tuple[list[str], list[list[str]]]:
    """What the task printed, and each command line of its life once."""
    handle, printed = await heard(subject.stdout_of("task"), super(ToolSubject, subject).start(spec), lines=3)
    if isinstance(subject.backend, contract.CanExec):
        options = ExecOptions(user="1:1", work_dir="/proc/1", env={"A": "b"})
        await subject.backend.exec(handle, ["/bin/sh", "-c", "exit 0"], timeout_s=DEADLINE_S, options=options)
    if isinstance(subject.backend, contract.HasAddress):
        await subject.backend.address(handle)
    if isinstance(subject.backend, contract.HasUsage):
        await subject.backend.usage(handle)
    await subject.backend.stop(handle, timeout_s=DEADLINE_S, signal="SIGUSR1")
    await subject.backend.destroy(handle)
    found = sorted({tuple(call): call for call in calls(subject.home)}.values())
    await refused(subject, found)
    return printed, found


def name_of(subject: ToolSubject) -> str:
    backend = subject.backend
    assert isinstance(backend, (KrunBackend, SeatbeltBackend, VzBackend, VzLinuxBackend))
    return backend._name_of(backend._bundle("task"))


async def test_krunvm(krun: KrunSubject) -> None:
    printed, found = await told(krun, rich(krun))
    env = [f"DOUBLES={krun.home}", "GREETING=it's me", "WHERE=/srv/data/file"]
    name, shell = name_of(krun), ["/bin/sh", "--", "-c", SCRIPT]
    size = ["--cpus", "3", "--mem", "8192"]
    assert printed == ["it's me /srv/data/file", "/proc", "ready"]
    assert found == [
        ["krunvm", "create", krun.base, "--name", name, *size, "--workdir", "/proc", "--volume", f"{krun.root}/data:/srv/data"],
        ["krunvm", "delete", name],
        ["krunvm", "start", name, *(part for entry in env for part in ("--env", entry)), *shell],
    ]


async def test_tart(vz: VzSubject) -> None:
    spec = rich(vz, user="1")
    printed, found = await told(vz, replace(spec, mounts=(*spec.mounts, read_only(vz))))
    name = name_of(vz)
    shares = ["--dir", f"zlayer0:{vz.root}/data", "--dir", f"zlayer1:{vz.root}/read-only:ro"]
    assert printed == ["it's me /Volumes/My Shared Files/zlayer0/file", "/proc", "ready"]
    shells = [call for call in found if call[:4] == ["tart", "exec", name, "/bin/sh"]]
    assert [call[4] for call in shells] == ["-c"] * 2
    assert [sum(word in call[5] for call in shells) for word in ("sudo -n -u '#1' -g '#1' --", "export A=b", "kill -s USR1")] == [1] * 3
    assert [call for call in found if call not in shells] == [
        ["tart", "clone", vz.base, name],
        ["tart", "delete", name],
        ["tart", "exec", "-i", name, "/bin/sh"],
        ["tart", "get", name, "--format", "json"],
        ["tart", "ip", name],
        ["tart", "ip", name, "--wait", "120", "--resolver", "agent"],
        ["tart", "run", name, "--no-graphics", "--no-audio", "--no-clipboard", *shares],
        ["tart", "set", name, "--cpu", "4", "--memory", "8192"],
    ]


async def test_container(vz_linux: VzLinuxSubject) -> None:
    spec = rich(
        vz_linux,
        user="1:1",
        init=True,
        ulimits=(Ulimit("nofile", 1024, None),),
        network=Network(dns_servers=("10.0.0.1",), dns_searches=("example.org",), dns_options=("ndots:2",)),
        security=Security(cap_add=("NET_RAW",), cap_drop=("CHOWN",), readonly_rootfs=True),
        entrypoint=("/bin/sh",),
        command=None,
    )
    spec = replace(spec, env={**spec.env, "LINES": "a\nb"})
    scratch = Mount(target="/srv/scratch", kind="tmpfs", size_bytes=16 << 20, mode=0o700)
    printed, found = await told(vz_linux, replace(spec, mounts=(*spec.mounts, read_only(vz_linux), scratch)))
    name, root = name_of(vz_linux), vz_linux.root
    env_file = next((root / "state/c").parent.glob("c")) / f"{name.split('-', 2)[2]}/env"
    mounts = [
        f"type=bind,source={root}/data,target=/srv/data",
        f"type=bind,source={root}/read-only,target=/srv/fixed,readonly",
        "type=tmpfs,target=/srv/scratch,size=16M,mode=700",
    ]
    assert printed == ["it's me /srv/data/file", "/proc", "ready"]
    assert found == [
        [
            *("container", "create", "--progress", "none", "--os", "linux", "--name", name, "--env-file", str(env_file)),
            *("--env", "LINES=a\nb", "--cpus", "3", "--memory", "8192M", "--user", "1:1", "--workdir", "/proc", "--init", "--read-only"),
            *("--shm-size", "64M", "--ulimit", "nofile=1024:unlimited", "--cap-add", "NET_RAW", "--cap-drop", "CHOWN"),
            *("--dns", "10.0.0.1", "--dns-search", "example.org", "--dns-option", "ndots:2"),
            *(part for mount in mounts for part in ("--mount", mount)),
            *("--entrypoint", "/bin/sh", vz_linux.base, "-c", SCRIPT),
        ],
        ["container", "delete", "--force", name],
        ["container", "exec", "--user", "1:1", "--workdir", "/proc/1", "--env", "A=b", name, "/bin/sh", "-c", "exit 0"],
        ["container", "inspect", name],
        ["container", "kill", "--signal", "SIGUSR1", name],
        ["container", "start", "--attach", name],
        ["container", "stats", "--format", "json", "--no-stream", name],
    ]


async def test_sandbox_exec(seatbelt: SeatbeltSubject) -> None:
    spec = rich(seatbelt)
    printed, found = await told(seatbelt, replace(spec, mounts=(*spec.mounts, read_only(seatbelt))))
    backend = seatbelt.backend
    assert isinstance(backend, SeatbeltBackend)
    bundle, (layer,) = backend._bundle("task"), seatbelt._store.get(BASE).layers
    mounts = ["-D", f"MOUNT0={seatbelt.root}/data", "-D", f"MOUNT1={seatbelt.root}/read-only"]
    sandbox = ["sandbox-exec", "-f", str(bundle.dir / "profile.sb"), "-D", f"ROOTFS={bundle.rootfs}", *mounts]
    assert printed == [f"it's me {seatbelt.root}/data/file", "/proc", "ready"]
    assert found == [
        ["cp", "-c", "-R", "-p", f"{layer}/.", str(bundle.rootfs)],
        [*sandbox, "/bin/sh", "-c", SCRIPT],
        [*sandbox, "/bin/sh", "-c", "exit 0"],
        [*sandbox, "/usr/bin/true"],
    ]


async def refused(subject: ToolSubject, found: list[list[str]]) -> None:
    """Each option of these command lines, altered by a letter, is one that the double does not know, and says so."""
    altered = [(call, at) for call in found for at in _options(call)]
    assert altered

    async def refuses(call: list[str], at: int) -> None:
        word = f"{call[at]}x"
        done = await capture([str(BIN / call[0]), *call[1:at], word, *call[at + 1 :]], env={"DOUBLES": str(subject.home)})
        assert (done.status, word in done.stderr.decode()) == (64, True), (call, word, done)

    await asyncio.gather(*(refuses(call, at) for call, at in altered))


def _options(call: list[str]) -> list[int]:
    """Where a command line has options of the tool's own, and not of a shell's that it runs."""
    end = call.index("/bin/sh") if "/bin/sh" in call and call[1] != "create" else len(call) - (2 if call[-2] == "-c" else 0)
    return [at for at, word in enumerate(call[:end]) if word.startswith("-") and word != "--"]
