"""What is special about a container in a VM: its guest's death and hang, its memory, the host's directories, and that nothing stays."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from pathlib import Path

import pytest

from tests.host import oci_lab
from tests.host.oci_lab import OneImage, remains, shell
from tests.host.vm_lab import MACHINES, backend, bundle_of, child_of, handle, machines
from zlayer_driver.backends import absence
from zlayer_driver.backends.oci_steps import STEPS
from zlayer_driver.backends.supervised.making import Making, Step
from zlayer_driver.backends.vm import VmBackend, missing
from zlayer_driver.backends.vm_node import Machines
from zlayer_driver.backends.vm_runtime import VmRuntime
from zlayer_driver.backends.vm_steps import VM_STEPS
from zlayer_driver.composite import Composite
from zlayer_driver.config import PluginConfig
from zlayer_driver.errors import CreateFailed, InvalidSpec, NotFound
from zlayer_driver.host import cgroups, usage
from zlayer_driver.model import OS, Device, Exit, Handle, ImageFacts, Mount, Network, Resources, Security, Target
from zlayer_driver.node import Node
from zlayer_driver.readings import ExecOptions

pytestmark = [pytest.mark.needs(*MACHINES), pytest.mark.timeout(180)]
DEADLINE_S = 60.0
RUNS = "trap 'exit 3' TERM; echo ready; while :; do sleep 1000 & wait $!; done"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Machines:
    return machines(tmp_path_factory.mktemp("machines"))


async def ended(vms: VmBackend, task: Handle) -> Exit:
    async with asyncio.timeout(DEADLINE_S):
        return await vms.wait(task)


async def test_guest_has_its_own_kernel_and_memory(root: Path, images: OneImage, found: Machines) -> None:
    vms = backend(root, images, found)
    spec = shell("one", "cat /proc/sys/kernel/osrelease; awk '/MemTotal/ {print $2}' /proc/meminfo; nproc; hostname; id -u; pwd")
    spec = dataclasses.replace(
        spec,
        stdout_path=str(root / "out"),
        resources=Resources(memory_bytes=64 << 20, cpu_quota_us=150_000),
        network=Network(mode="none", hostname="guest-one"),
        user="worker",
        work_dir="/srv",
    )
    task = handle("one", await vms.start(spec))
    assert await ended(vms, task) == Exit(0)
    release, memory_kib, cpus, *rest = (root / "out").read_text().splitlines()
    assert release == (await found.find()).files.release != os.uname().release
    assert 64 << 10 < int(memory_kib) < 160 << 10
    assert (cpus, rest) == ("2", ["guest-one", "1000", "/srv"])
    await vms.destroy(task)


async def test_qemu_killed_from_outside_is_a_kill(root: Path, images: OneImage, found: Machines) -> None:
    vms = backend(root, images, found)
    task = handle("one", await vms.start(shell("one", RUNS)))
    os.kill(child_of(root, task, "qemu"), signal.SIGKILL)
    assert await ended(vms, task) == Exit(137, 9)
    with pytest.raises(NotFound):
        await vms.exec(task, ["true"], timeout_s=DEADLINE_S)
    await vms.destroy(task)


async def test_guest_that_dies_is_told_with_its_last_words(root: Path, images: OneImage, found: Machines) -> None:
    vms = backend(root, images, found)
    spec = dataclasses.replace(shell("one", "echo c >/proc/sysrq-trigger; sleep 1000"), security=Security(privileged=True))
    task = handle("one", await vms.start(spec))
    end = await ended(vms, task)
    assert end.code == 255
    assert "sysrq triggered crash" in end.error
    vms = backend(root, images, found)
    await vms.recover(task)
    assert await ended(vms, task) == end
    await vms.destroy(task)


async def test_guest_that_hangs_is_given_up(root: Path, images: OneImage, found: Machines) -> None:
    async def impatient(making: Making) -> None:
        assert isinstance(making.runtime, VmRuntime)
        making.runtime = dataclasses.replace(making.runtime, hang_timeout_s=1.0)
        await guest.do(making)

    guest = next(step for step in VM_STEPS if step.name == "guest")
    steps = tuple(Step(step.name, impatient if step is guest else step.do, step.undo) for step in VM_STEPS)
    vms = backend(root, images, found, steps=steps)
    task = handle("one", await vms.start(shell("one", RUNS)))
    os.kill(child_of(root, task, "qemu"), signal.SIGSTOP)
    end = await ended(vms, task)
    assert (end.code, "has not answered for 1 s" in end.error) == (255, True)
    await vms.destroy(task)


async def test_out_of_memory_is_told_apart_from_a_kill(root: Path, images: OneImage, found: Machines) -> None:
    vms = backend(root, images, found)
    spec = shell("one", "exec awk 'BEGIN { s = \"x\"; while (1) s = s s }'", resources=Resources(memory_bytes=32 << 20))
    task = handle("one", await vms.start(spec))
    assert await ended(vms, task) == Exit(137, 9, oom_killed=True)
    await vms.destroy(task)


async def test_what_a_guest_uses_is_counted(root: Path, images: OneImage, found: Machines) -> None:
    os.mkfifo(root / "out")
    vms = backend(root, images, found)
    script = "dd if=/dev/zero of=/dev/shm/file bs=1M count=8 2>/dev/null; echo ready; while :; do :; done"
    limits = Resources(memory_bytes=64 << 20, cpu_quota_us=50_000, cpu_shares=100, cpuset_cpus="0")
    task = handle("one", await vms.start(shell("one", script, resources=limits, stdout_path=str(root / "out"))))
    qemu = child_of(root, task, "qemu")
    assert os.sched_getaffinity(qemu) == {0}
    group = cgroups.trees().v1.get("cpu", Path("/nowhere")) / bundle_of(root, "one").cgroup.strip("/")
    assert not group.exists() or (group / "cpu.shares").read_text() == "100\n"
    assert f"{bundle_of(root, 'one').cgroup}\n" in Path(f"/proc/{qemu}/cgroup").read_text()
    with (root / "out").open() as out:
        assert out.readline() == "ready\n"
    samples = await vms.stream_usage(task)
    now = await anext(samples)
    assert now.cpu_total_ns >= now.cpu_system_ns > 0
    assert (now.cpu_throttled_periods or 0) > 0
    assert now.memory_limit_bytes == 64 << 20 > (now.memory_peak_bytes or 0) >= now.memory_bytes >= (now.memory_cache_bytes or 0) >= 8 << 20
    assert min(now.memory_rss_bytes or 0, now.memory_kernel_bytes or 0) > 0
    assert (now.memory_swap_bytes, now.pids, list(now.processes)) == (0, 1, [1])
    assert now.processes[1].rss_bytes > 0
    later = await anext(samples)
    assert later.processes[1].cpu_user_ns > now.processes[1].cpu_user_ns
    given = usage.read(cgroups.trees(), bundle_of(root, "one").cgroup)
    assert given.cpu_ns >= later.cpu_total_ns
    assert given.memory_bytes >= later.memory_bytes > 0
    await vms.update(task, Resources(cpuset_cpus="1"))
    assert os.sched_getaffinity(qemu) == {1}
    await vms.destroy(task)


async def test_hosts_directories_are_live_both_ways(root: Path, images: OneImage, found: Machines) -> None:
    for name in ("shared", "secret"):
        (root / name).mkdir()
    (root / "secret/key").write_text("before\n")
    (root / "one.txt").write_text("a file\n")
    mounts = (
        Mount(target="/alloc/data", source=str(root / "shared")),
        Mount(target="/secrets", source=str(root / "secret"), read_only=True),
        Mount(target="/srv/one.txt", source=str(root / "one.txt")),
        Mount(target="/scratch", kind="tmpfs", size_bytes=1 << 20),
    )
    vms = backend(root, images, found)
    task = handle("one", await vms.start(shell("one", RUNS, mounts=mounts)))
    (root / "secret/key").write_text("after\n")

    async def inside(script: str) -> tuple[int, bytes]:
        done = await vms.exec(task, ["sh", "-c", script], timeout_s=DEADLINE_S, options=ExecOptions())
        return done.exit.code, done.stdout

    assert await inside("cat /secrets/key /srv/one.txt; echo from the guest >/alloc/data/told; touch /scratch/x") == (0, b"after\na file\n")
    assert (root / "shared/told").read_text() == "from the guest\n"
    assert (await inside("echo no >/secrets/key"))[0] == 1
    assert (root / "secret/key").read_text() == "after\n"
    await vms.destroy(task)


async def test_root_file_system_can_be_read_only(root: Path, images: OneImage, found: Machines) -> None:
    vms = backend(root, images, found)
    spec = shell("one", "touch /tmp/x; test $? = 1 && touch /dev/shm/x", security=Security(readonly_rootfs=True))
    task = handle("one", await vms.start(spec))
    assert await ended(vms, task) == Exit(0)
    await vms.destroy(task)


async def test_devices_of_the_host_are_refused(root: Path, images: OneImage, found: Machines) -> None:
    with pytest.raises(InvalidSpec, match="devices"):
        await backend(root, images, found).start(shell("one", "true", devices=(Device("/dev/null", "/dev/other"),)))


async def test_output_beyond_every_buffer_is_whole_though_the_reader_comes_late(root: Path, images: OneImage, found: Machines) -> None:
    vms = backend(root, images, found)
    os.mkfifo(root / "out")
    spec = shell("one", "dd if=/dev/zero bs=1024 count=1500 2>/dev/null; echo end", stdout_path=str(root / "out"))
    task = handle("one", await vms.start(spec))

    def read() -> int:
        with (root / "out").open("rb") as fifo:
            return len(fifo.read())

    assert await asyncio.to_thread(read) == 1500 * 1024 + 4
    assert await ended(vms, task) == Exit(0)
    await vms.destroy(task)


@pytest.mark.parametrize("number", range(len(VM_STEPS)), ids=[step.name for step in VM_STEPS])
async def test_start_that_fails_at_any_step_leaves_nothing(root: Path, images: OneImage, found: Machines, number: int) -> None:
    async def fail(making: Making) -> None:
        await VM_STEPS[number].do(making)
        raise CreateFailed(making.bundle.id, "this step is made to fail")

    steps = tuple(Step(step.name, fail if at == number else step.do, step.undo) for at, step in enumerate(VM_STEPS))
    mounts = (Mount(target="/data", source=str(root)),)
    with pytest.raises(CreateFailed, match="made to fail"):
        await backend(root, images, found, steps=steps).start(shell("one", "sleep 1000", mounts=mounts))
    assert not remains(root)


async def test_supervisor_outlives_the_driver(root: Path, images: OneImage, found: Machines) -> None:
    """The exit of a task that ended while no driver was there is known to the next one."""
    (root / "shared").mkdir()
    spec = shell(
        "one", "while ! test -e /shared/go; do sleep 0.1; done; exit 9", mounts=(Mount(target="/shared", source=str(root / "shared")),)
    )
    task = handle("one", await backend(root, images, found).start(spec))
    (root / "shared/go").touch()
    vms = backend(root, images, found)
    await vms.sweep()
    await vms.recover(task)
    assert await ended(vms, task) == Exit(9)
    await vms.destroy(task)


async def test_machine_with_pci_serves_as_well(root: Path, images: OneImage, tmp_path: Path) -> None:
    vms = backend(root, images, machines(tmp_path, "q35"))
    spec = shell("one", "cat /data/word", stdout_path=str(root / "out"), mounts=(Mount(target="/data", source=str(tmp_path)),))
    (tmp_path / "word").write_text("told\n")
    task = handle("one", await vms.start(spec))
    assert await ended(vms, task) == Exit(0)
    assert (root / "out").read_text() == "told\n"
    await vms.destroy(task)


async def test_lives_leave_nothing(root: Path, images: OneImage, found: Machines, no_fd_leak: None) -> None:
    vms = backend(root, images, found)
    for number in range(6):
        task = handle("one", await vms.start(shell("one", f"exit {number}")))
        assert await ended(vms, task) == Exit(number)
        await vms.destroy(task)
        assert not remains(root)


async def test_a_host_that_cannot_run_vms_says_what_to_install(
    root: Path, images: OneImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PluginConfig(state_dir=str(root), vm_kernel=str(tmp_path))
    assert "no kernel for guests below" in missing(config)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install qemu-system-x86" in missing(config)
    assert Target.DELEGATE not in Node(config).backends
    assert "install qemu-system-x86" in absence(Target.DELEGATE, config)


async def test_kvm_is_believed_only_after_a_boot(root: Path, images: OneImage, tmp_path: Path) -> None:
    """Whatever is found, a guest runs with it, and what was found is found again at once."""
    vms = backend(root, images, Machines(tmp_path / "boot"))
    told = (await vms.probe()).attributes["accelerator"]
    task = handle("one", await vms.start(shell("one", "exit 4")))
    assert await ended(vms, task) == Exit(4)
    await vms.destroy(task)
    assert (await backend(root, images, Machines(tmp_path / "boot")).probe()).attributes["accelerator"] == told


async def test_chain_of_targets_ends_in_the_vm(root: Path, images: OneImage, found: Machines) -> None:
    """The primary cannot create it, and the config names the delegate: the VM runs it, and owns it from then on."""

    async def refuse(making: Making) -> None:
        raise CreateFailed(making.bundle.id, "the primary is made to fail")

    failing = tuple(Step(step.name, refuse if step.name == "container" else step.do, step.undo) for step in STEPS)
    primary = oci_lab.backend(root / "primary", images, steps=failing)
    heard: list[tuple[Target, Target, str]] = []
    node = Composite(
        {Target.PRIMARY: primary, Target.DELEGATE: backend(root, images, found)},
        native_os=OS.LINUX,
        facts=lambda _image: ImageFacts(os=OS.LINUX),
        fallback=[Target.DELEGATE],
        on_fallback=lambda _spec, first, then, error: heard.append((first, then, error.message)),
    )
    task = await node.create(shell("one", RUNS))
    assert (task.target, task.backend, node.owner("one")) == (Target.DELEGATE, "vm", Target.DELEGATE)
    assert [(first, then) for first, then, _ in heard] == [(Target.PRIMARY, Target.DELEGATE)]
    assert "made to fail" in heard[0][2]
    told = await node.exec("one", ["cat", "/proc/sys/kernel/osrelease"], timeout_s=DEADLINE_S)
    assert told.stdout.decode().strip() == (await found.find()).files.release
    await node.stop("one", timeout_s=0)
    await node.destroy("one")
    assert not remains(root / "primary")
