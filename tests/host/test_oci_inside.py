"""What a task finds in its container: asked of the container itself."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.oci_lab import OneImage, backend, bundle_of, handle, shell
from zlayer_driver.errors import DriverError, InvalidSpec
from zlayer_driver.host import cgroups, mounts
from zlayer_driver.host.processes import capture
from zlayer_driver.model import Device, Exit, Mount, Network, Resources, Security, TaskSpec, Ulimit

pytestmark = [pytest.mark.needs("linux", "root", "runc", "conmon", "busybox"), pytest.mark.usefixtures("no_fd_leak")]

MS_BIND, MS_SHARED = 0x1000, 0x100000


async def said(root: Path, images: OneImage, spec: TaskSpec) -> list[str]:
    """The lines that a task prints, stdout and stderr together, having ended with 0."""
    oci = backend(root, images)
    log = root / f"said-{spec.id}"
    spec = dataclasses.replace(spec, stdout_path=str(log), stderr_path=str(log))
    task = handle(spec.id, await oci.start(spec))
    try:
        end = await oci.wait(task)
    finally:
        await oci.destroy(task)
    assert (end, log.read_text()) == (Exit(0), log.read_text())
    return log.read_text().splitlines()


async def test_user_groups_and_home_come_from_the_image(root: Path, images: OneImage) -> None:
    assert await said(root, images, shell("one", "id -u; id -g; id -G; echo $HOME", user="worker")) == [
        "1000",
        "1001",
        "1001 29 30",
        "/home/worker",
    ]


@pytest.mark.parametrize(
    ("user", "ids"), [("", "0:0"), ("1000", "1000:1001"), ("4711", "4711:0"), ("7:8", "7:8"), ("worker:audio", "1000:29")]
)
async def test_ways_to_name_a_user(root: Path, images: OneImage, user: str, ids: str) -> None:
    assert await said(root, images, shell("one", "echo $(id -u):$(id -g)", user=user)) == [ids]


async def test_environment_and_working_directory(root: Path, images: OneImage) -> None:
    spec = shell("one", 'pwd; echo "$PATH $A $B"', env={"A": "a b", "B": "x=y"}, work_dir="/made/for this")
    assert await said(root, images, spec) == ["/made/for this", "/bin a b x=y"]


async def test_image_defaults(root: Path, images: OneImage) -> None:
    own = OneImage(
        images.root,
        entrypoint=("/bin/sh", "-c"),
        cmd=("echo $WHO; pwd; id -u",),
        env=("PATH=/bin", "WHO=image"),
        work_dir="/srv",
        user="worker",
    )
    assert await said(root, own, TaskSpec(id="one", name="one", image="example.org/busybox:1")) == ["image", "/srv", "1000"]


async def test_upper_layers_win_and_what_is_written_stays_with_the_container(root: Path, images: OneImage) -> None:
    assert await said(root, images, shell("one", "cat /srv/mark; echo changed > /srv/mark; cat /srv/mark")) == ["upper layer", "changed"]
    assert (images.root / "top/srv/mark").read_text() == "upper layer\n"


async def test_mounts(root: Path, images: OneImage) -> None:
    for name in ("rw", "ro"):
        (root / name).mkdir()
    wanted = (
        Mount(source=str(root / "ro"), target="/data/ro", read_only=True),
        Mount(source=str(root / "rw"), target="/data"),
        Mount(kind="tmpfs", target="/scratch", size_bytes=1 << 20),
    )
    script = "echo x > /data/file; echo x > /data/ro/file || echo refused; dd if=/dev/zero of=/scratch/f bs=4M count=1 || echo full"
    told = await said(root, images, shell("one", script, mounts=wanted))
    assert "refused" in told
    assert "full" in told
    assert (root / "rw/file").read_text() == "x\n"


@pytest.fixture
def shared(root: Path) -> Iterator[Path]:
    """A directory of the host whose mounts are shared."""
    path = root / "shared"
    (path / "host").mkdir(parents=True)
    (path / "task").mkdir()
    mounts.mount(str(path), path, "", MS_BIND)
    mounts.mount("", path, "", MS_SHARED)
    yield path
    for mounted in (path / "host", path / "task", path):
        mounts.unmount(mounted)


@pytest.mark.parametrize(("propagation", "sees", "shows"), [("rprivate", False, False), ("rslave", True, False), ("rshared", True, True)])
async def test_propagation_of_mounts(root: Path, images: OneImage, shared: Path, propagation: str, sees: bool, shows: bool) -> None:
    binds = (Mount(source=str(shared), target="/data", propagation=propagation),)
    oci = backend(root, images)
    spec = shell("one", "exec sleep 1000", mounts=binds, security=Security(cap_add=("sys_admin",)))
    task = handle("one", await oci.start(spec))
    mounts.mount("tmpfs", shared / "host", "tmpfs")
    (shared / "host/mark").touch()
    seen = await oci.exec(task, ["test", "-e", "/data/host/mark"], timeout_s=30)
    made = await oci.exec(task, ["mount", "-t", "tmpfs", "none", "/data/task"], timeout_s=30)
    assert (seen.exit.code == 0, made.exit.code, (shared / "task").is_mount()) == (sees, 0, shows)
    await oci.destroy(task)


async def test_read_only_root(root: Path, images: OneImage) -> None:
    spec = shell("one", "touch /new || echo refused; touch /dev/shm/new && echo shm", security=Security(readonly_rootfs=True))
    assert (await said(root, images, spec))[-2:] == ["refused", "shm"]


@pytest.mark.parametrize(("network", "own"), [(Network(mode="host"), False), (Network(mode="none"), True)], ids=["host", "none"])
async def test_network_modes(root: Path, images: OneImage, network: Network, own: bool) -> None:
    told = await said(root, images, shell("one", "ls -l /proc/self/ns/net | awk '{print $NF}'; ls /sys/class/net", network=network))
    assert (told[0] != str(Path("/proc/self/ns/net").readlink())) == own
    assert (told[1:] == ["lo"]) or not own


async def test_a_network_namespace_by_path(root: Path, images: OneImage) -> None:
    path = root / "netns"
    path.touch()
    assert (await capture(["unshare", f"--net={path}", "true"])).status == 0
    try:
        inode = path.stat().st_ino
        network = Network(mode="path", netns_path=str(path))
        assert await said(root, images, shell("one", "ls -l /proc/self/ns/net | awk '{print $NF}'", network=network)) == [f"net:[{inode}]"]
    finally:
        mounts.unmount(path)


async def test_files_of_the_node(root: Path, images: OneImage) -> None:
    network = Network(
        mode="none",
        hostname="box",
        dns_servers=("10.0.0.53",),
        dns_searches=("a.example", "b.example"),
        dns_options=("ndots:2",),
        extra_hosts=(("db", "10.0.0.9"),),
    )
    told = await said(root, images, shell("one", "hostname; cat /etc/hostname /etc/resolv.conf /etc/hosts", network=network))
    assert told[:5] == ["box", "box", "nameserver 10.0.0.53", "search a.example b.example", "options ndots:2"]
    assert "10.0.0.9\tdb" in told
    assert "127.0.0.1\tlocalhost" in told


async def test_host_network_keeps_the_nodes_name(root: Path, images: OneImage) -> None:
    assert await said(root, images, shell("one", "hostname")) == [socket.gethostname()]


async def test_capabilities(root: Path, images: OneImage) -> None:
    script = "awk '/Cap(Eff|Bnd|Inh|Amb)|NoNew|Seccomp:/ {print $2}' /proc/self/status"
    default = await said(root, images, shell("one", script))
    assert default == ["0000000000000000", "00000000a80425fb", "00000000a80425fb", "0000000000000000", "0", "2"]
    changed = shell("two", script, security=Security(cap_add=("net_admin",), cap_drop=("CAP_MKNOD", "chown")))
    assert (await said(root, images, changed))[1] == "00000000a00435fa"
    nothing = shell("three", script, security=Security(cap_drop=("all",)))
    assert (await said(root, images, nothing))[1] == "0000000000000000"


async def test_privileged(root: Path, images: OneImage) -> None:
    script = "awk '/CapEff|Seccomp:/ {print $2}' /proc/self/status; mount -t tmpfs none /tmp && echo mounted; test -c /dev/net/tun || test -c /dev/kmsg && echo devices"
    told = await said(root, images, shell("one", script, security=Security(privileged=True)))
    bounding = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd"))
    assert told == [bounding, "0", "mounted", "devices"]


async def test_what_reaches_into_the_machine_is_out_of_reach(root: Path, images: OneImage) -> None:
    script = """
        cat /proc/kcore /proc/keys /proc/timer_list | head -c 1
        ls /sys/firmware
        echo 1 > /proc/sys/kernel/core_pattern || echo sys
        echo 1 > /proc/sysrq-trigger || echo sysrq
        mount -t tmpfs none /tmp || echo mount
        ls /proc/self/fd | wc -l
    """
    told = await said(root, images, shell("one", script))
    assert [line for line in told if ":" not in line] == ["sys", "sysrq", "mount", "4"]


async def test_devices(root: Path, images: OneImage) -> None:
    devices = (Device("/dev/kmsg", "/dev/messages", "w"),)
    script = "(: > /dev/messages) && echo written; (: < /dev/messages) || echo refused; ls /dev/kmsg || echo none"
    told = await said(root, images, shell("one", script, devices=devices))
    assert [line for line in told if ":" not in line] == ["written", "refused", "none"]


async def test_labels_are_annotations_that_no_runtime_obeys(root: Path, images: OneImage) -> None:
    oci = backend(root, images)
    task = handle("one", await oci.start(shell("one", "true", labels={"run.oci.handler": "krun", "team": "web"})))
    config = json.loads(bundle_of(root, "one").config.read_bytes())
    assert config["annotations"] == {"com.zlayer.label.run.oci.handler": "krun", "com.zlayer.label.team": "web"}
    await oci.destroy(task)


async def test_limits_reach_the_kernel(root: Path, images: OneImage) -> None:
    limits = Resources(
        cpu_shares=512, cpu_quota_us=50_000, cpuset_cpus="0", memory_bytes=64 << 20, memory_reservation_bytes=32 << 20, pids=20
    )
    if cgroups.trees().mode is cgroups.Mode.V2:
        names: tuple[str, ...] = ("cpu.max", "cpuset.cpus", "memory.max", "memory.low", "memory.swap.max", "pids.max")
        wanted = ["50000 100000", "0", str(64 << 20), str(32 << 20), "0", "20"]
    else:
        names = (
            "cpu/cpu.shares",
            "cpu/cpu.cfs_quota_us",
            "cpuset/cpuset.cpus",
            "memory/memory.limit_in_bytes",
            "memory/memory.soft_limit_in_bytes",
            "memory/memory.memsw.limit_in_bytes",
            "pids/pids.max",
        )
        wanted = ["512", "50000", "0", str(64 << 20), str(32 << 20), str(64 << 20), "20"]
    script = "cd /sys/fs/cgroup; cat " + " ".join(names) + "; echo nproc $(nproc)"
    assert await said(root, images, shell("one", script, resources=limits)) == [*wanted, "nproc 1"]


async def test_namespaces_of_the_node(root: Path, images: OneImage) -> None:
    kinds = ("pid", "ipc", "uts")
    script = "for kind in pid ipc uts; do ls -l /proc/self/ns/$kind | awk '{print $NF}'; done; hostname"
    told = await said(root, images, shell("one", script, security=Security(host_namespaces=kinds), network=Network(mode="none")))
    assert told == [*(str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in kinds), socket.gethostname()]


async def test_nothing_of_a_task_in_the_nodes_pid_namespace_stays(root: Path, images: OneImage) -> None:
    oci = backend(root, images)
    spec = shell("one", "sleep 1000 & exec sleep 1001", security=Security(host_namespaces=("pid",)))
    task = handle("one", await oci.start(spec))
    await oci.stop(task, timeout_s=0, signal="KILL")
    await oci.destroy(task)


async def test_an_init_reaps_and_ends_as_the_command(root: Path, images: OneImage) -> None:
    script = "cat /proc/1/cmdline; left=$(sh -c 'sleep 0 & echo $!'); while test -d /proc/$left; do :; done; ls -d /.* /dev/init"
    told = await said(root, images, shell("one", script, init=True, security=Security(readonly_rootfs=True)))
    assert told[0].startswith("/dev/init\0--\0/bin/sh\0")
    assert told[-1] == "/dev/init"
    oci = backend(root, images)
    for command, code in (("exit 7", 7), ("kill -KILL $$", 137), ("exec /no/such", 127)):
        task = handle("two", await oci.start(shell("two", command, init=True)))
        assert (await oci.wait(task)).code == code
        await oci.destroy(task)


async def test_an_init_passes_signals_on(root: Path, images: OneImage, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    oci = backend(root, images)
    script = "trap 'exit 3' USR1; echo ready; while :; do sleep 1000 & wait $!; done"
    task = handle("one", await oci.start(shell("one", script, init=True, stdout_path=str(tmp_path / "out"))))
    with (tmp_path / "out").open() as out:
        assert out.readline() == "ready\n"
    await oci.stop(task, timeout_s=30, signal="USR1")
    assert await oci.wait(task) == Exit(3)
    await oci.destroy(task)


async def test_an_installation_without_an_init_says_so(root: Path, images: OneImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zlayer_driver.backends.supervised.spec._INIT_PROGRAM", root / "none")
    with pytest.raises(InvalidSpec, match="this installation has no init for containers: build zlayer-driver"):
        await backend(root, images).start(shell("one", "true", init=True))


async def test_ulimits_sysctls_groups_and_shared_memory(root: Path, images: OneImage) -> None:
    spec = shell(
        "one",
        "ulimit -Sn; ulimit -Hn; cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmax; id -G; df -k /dev/shm | awk 'END {print $2}'; cat /proc/self/oom_score_adj",
        ulimits=(Ulimit("nofile", 99, 100),),
        sysctls={"net.core.somaxconn": "77", "kernel.shmmax": "4096"},
        network=Network(mode="none"),
        groups=("audio", "31"),
        shm_bytes=1 << 20,
        resources=Resources(oom_score_adj=900),
    )
    assert await said(root, images, spec) == ["99", "100", "77", "4096", "0 29 31", "1024", "900"]


async def test_filters_and_privileges(root: Path, images: OneImage) -> None:
    script = "awk '/NoNew|Seccomp:/ {print $2}' /proc/self/status; mkdir x || echo refused"
    strict = root / "filter.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    strict.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    own = shell("one", script, security=Security(seccomp=str(strict), no_new_privileges=True))
    assert [line for line in await said(root, images, own) if ":" not in line] == ["1", "2", "refused"]
    assert await said(root, images, shell("two", script, security=Security(seccomp="unconfined"))) == ["0", "0"]


async def test_permissions_of_a_tmpfs(root: Path, images: OneImage) -> None:
    wanted = (Mount(kind="tmpfs", target="/scratch", mode=0o700),)
    assert (await said(root, images, shell("one", "ls -ld /scratch", mounts=wanted)))[0].startswith("drwx------")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ulimits": (Ulimit("nofile", 1, None),)}, "ulimit nofile cannot be unlimited: the driver's own hard limit on this node is"),
        ({"security": Security(cap_add=("frobnicate",))}, "CAP_FROBNICATE is no capability"),
        ({"mounts": (Mount(source="/no/such", target="/x"),)}, "'/no/such', to be mounted at '/x', does not exist"),
        ({"mounts": (Mount(source="/tmp", target="/x/../../y"),)}, "is not an absolute path without '..'"),
        ({"devices": (Device("/dev/no-such", "/dev/x"),)}, "device '/dev/no-such' cannot be used"),
        ({"devices": (Device("/tmp", "/dev/x"),)}, "'/tmp' is not a device node"),
        ({"work_dir": "srv"}, "working directory 'srv' is not absolute"),
        ({"user": "worker:nogroup"}, "group 'nogroup' is not in the image's /etc/group"),
        ({"env": {"A": "x\0y"}}, "has a NUL byte"),
        ({"env": {"": "x"}}, "or no name"),
        ({"network": Network(mode="path", netns_path="/no/such/netns")}, "/no/such/netns"),
        ({"network": Network(mode="none", extra_hosts=(("a\nb", "1"),))}, "is no host name"),
        ({"resources": Resources(cpuset_cpus="99")}, "this node has no CPU 99"),
        ({"resources": Resources(cpuset_cpus="0;1")}, "is no list of CPUs"),
        ({"stdout_path": "/no/such/dir/fifo"}, "cannot open log '/no/such/dir/fifo'"),
    ],
)
async def test_a_spec_that_cannot_be_met_is_one_sentence(root: Path, images: OneImage, changes: dict[str, object], text: str) -> None:
    with pytest.raises(DriverError) as caught:
        await backend(root, images).start(shell("one", "true", **changes))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_links_of_an_image_lead_nowhere_else(root: Path, tmp_path: Path) -> None:
    trap = OneImage(tmp_path / "trap")
    trap.fill()
    outside = tmp_path / "passwd"
    outside.write_text("outsider:x:0:0::/:/bin/sh\n")
    (trap.root / "base/etc/passwd").unlink()
    (trap.root / "base/etc/passwd").symlink_to(f"../../../../../../../../..{outside}")
    with pytest.raises(InvalidSpec, match="outsider"):
        await backend(root, trap).start(shell("one", "true", user="outsider"))


async def test_a_user_table_that_would_block_its_reader(root: Path, tmp_path: Path) -> None:
    trap = OneImage(tmp_path / "trap")
    trap.fill()
    (trap.root / "base/etc/passwd").unlink()
    os.mkfifo(trap.root / "base/etc/passwd")
    with pytest.raises(InvalidSpec, match="/etc/passwd is not a regular file"):
        await backend(root, trap).start(shell("one", "true"))
