"""What guests boot from, and what they are told, byte for byte."""

from __future__ import annotations

import dataclasses
import gzip
import lzma
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from zlayer_driver.backends import vm_boot, vm_guest
from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.backends.vm_boot import BootFiles
from zlayer_driver.backends.vm_machine import Machine, cpus, memory_bytes
from zlayer_driver.errors import InvalidSpec, Unsupported
from zlayer_driver.guest.frames import BrokenFrames, Frame, GuestUsage, Kind, Parser, fields, pack
from zlayer_driver.host.steering import Link, Route
from zlayer_driver.model import Device, Mount, Network, Resources, Security, TaskSpec

ELF = b"\x7fELF" + bytes(range(256)) * 40
FILES = BootFiles(Path("/boot/kernel"), Path("/boot/initrd"), "6.1.0")
MACHINE = Machine(qemu="/usr/bin/qemu", version="7.2", kind="microvm", accelerator="tcg", files=FILES, tsc_khz=2_000_000, share="/fsd")
TASK = TaskSpec(id="one", name="one", image="example.org/i:1")


def lz4(data: bytes) -> bytes:
    return subprocess.run(["lz4", "-l", "-c"], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    "compress",
    [gzip.compress, lzma.compress, zstandard.ZstdCompressor().compress, pytest.param(lz4, marks=pytest.mark.needs("lz4"))],
    ids=["gzip", "xz", "zstd", "lz4"],
)
def test_kernel_is_found_in_its_image(compress: Callable[[bytes], bytes]) -> None:
    false_start = b"\x1f\x8b\x08 and no more of it"
    assert vm_boot.elf_kernel(b"boot sector" + false_start + compress(ELF) + b"\0size") == ELF
    assert vm_boot.elf_kernel(ELF) == ELF


def test_image_without_a_kernel_is_refused() -> None:
    with pytest.raises(Unsupported, match="compressed in a way"):
        vm_boot.elf_kernel(b"MZ" + bytes(1000))


def test_newest_kernel_with_modules_is_taken(tmp_path: Path) -> None:
    for release, modules in (("6.1.9-1", True), ("6.1.10-1", True), ("6.12.0-1", False)):
        (tmp_path / "boot").mkdir(exist_ok=True)
        (tmp_path / f"boot/vmlinuz-{release}").write_bytes(ELF)
        if modules:
            (tmp_path / "lib/modules" / release).mkdir(parents=True)
    assert vm_boot.find_kernel(str(tmp_path)).release == "6.1.10-1"
    with pytest.raises(Unsupported, match="vm_kernel"):
        vm_boot.find_kernel(str(tmp_path / "boot"))


@pytest.mark.needs("busybox")
def test_initramfs_is_an_archive_with_modules_after_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = tmp_path / "kernel/drivers"
    kernel.mkdir(parents=True)
    (kernel / "virtio_mmio.ko").write_bytes(b"\x7fELF\0license=GPL\0depends=virtio,virtio-ring\0")
    (kernel / "virtio.ko.xz").write_bytes(lzma.compress(b"\x7fELF\0depends=virtio_ring\0"))
    (kernel / "virtio-ring.ko.zst").write_bytes(zstandard.ZstdCompressor().compress(b"\x7fELF\0depends=\0"))
    (kernel / "wireguard.ko").write_bytes(b"\x7fELF\0depends=udp_tunnel,virtio\0")
    (kernel / "udp_tunnel.ko").write_bytes(b"\x7fELF\0depends=\0")
    (tmp_path / "agent").write_bytes(b"the agent")
    monkeypatch.setattr(vm_boot, "AGENT", tmp_path / "agent")
    archive = vm_boot.initramfs(tmp_path)
    (tmp_path / "out").mkdir()
    subprocess.run(["busybox", "cpio", "-id"], cwd=tmp_path / "out", input=archive, check=True, capture_output=True)
    assert (tmp_path / "out/init").read_bytes() == b"the agent"
    assert (tmp_path / "out/modules/boot").read_text().split() == ["virtio_ring.ko", "virtio.ko", "virtio_mmio.ko"]
    assert (tmp_path / "out/modules/wireguard").read_text().split() == ["udp_tunnel.ko", "wireguard.ko"]
    assert (tmp_path / "out/modules/virtio_ring.ko").read_bytes().startswith(b"\x7fELF")


def test_command_line_of_a_lean_machine() -> None:
    quiet = "console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=on mitigations=off edd=off i8042.noaux i8042.nokbd"
    argv = MACHINE.command("one-1", disk=Path("/state/a,b.erofs"), memory_bytes=160 << 20, cpus=2, shares=False)
    assert argv == [
        *("/usr/bin/qemu", "-name", "one-1", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-monitor", "none"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", "microvm,pit=on,pic=on,rtc=on,isa-serial=on,pcie=on", "-accel", "tcg", "-m", "160M", "-smp", "2"),
        *("-kernel", "/boot/kernel", "-initrd", "/boot/initrd", "-append"),
        f"{quiet} tsc=reliable no_timer_check tsc_early_khz=2000000",
        *("-serial", "stdio", "-chardev", "socket,id=control,fd={control}"),
        *("-device", "virtio-serial-device", "-device", "virtserialport,chardev=control,name=zlayer"),
        *("-drive", "id=root,file=/state/a,,b.erofs,format=raw,if=none,readonly=on", "-device", "virtio-blk-device,drive=root"),
    ]


def test_command_line_of_a_machine_with_everything() -> None:
    machine = dataclasses.replace(MACHINE, kind="q35", accelerator="kvm")
    network = ("tap,ifname=t,script=no,downscript=no", "52:54:00:00:00:01")
    argv = machine.command("one-1", disk=Path("/d"), memory_bytes=96 << 20, cpus=1, shares=True, network=network)
    assert "tsc_early_khz" not in argv[argv.index("-append") + 1]
    assert argv[argv.index("-machine") + 1] == "q35,memory-backend=memory"
    assert argv[argv.index("virtio-blk-pci,drive=root") + 1 :] == [
        *("-cpu", "host", "-object", "memory-backend-memfd,id=memory,size=96M,share=on"),
        *("-chardev", "socket,id=share,path=share.sock", "-device", "vhost-user-fs-pci,chardev=share,tag=zlayer"),
        *("-netdev", "tap,ifname=t,script=no,downscript=no,id=net", "-device", "virtio-net-pci,netdev=net,mac=52:54:00:00:00:01"),
    ]
    shared = ["/fsd", "-f", "--fd={control}", "-o", "source=/share", "-o", "sandbox=chroot", "-o", "cache=auto"]
    assert machine.share_command(Path("/share")) == shared
    with pytest.raises(Unsupported, match="virtiofsd"):
        dataclasses.replace(machine, share="").share_command(Path("/share"))


def test_machine_is_as_large_as_the_task_needs() -> None:
    assert memory_bytes(Resources(memory_bytes=(64 << 20) + 1)) == 161 << 20
    assert memory_bytes(Resources()) == 608 << 20
    assert cpus(Resources()) == cpus(Resources(cpu_shares=100)) == 1
    assert cpus(Resources(cpu_quota_us=10**9)) == cpus(Resources(cpu_shares=10**9)) >= 1


@pytest.mark.parametrize("count", [0, 11, 13, 17])
def test_usage_of_a_wrong_length_is_broken(count: int) -> None:
    with pytest.raises(BrokenFrames):
        GuestUsage.parse(bytes(8 * count))
    assert GuestUsage.parse(bytes(8 * 16)).processes == ((0, 0, 0, 0),)


def test_guest_is_told_its_setup(tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, "one")
    bundle.etc.mkdir(parents=True)
    for name in ("hosts", "hostname", "resolv.conf"):
        (bundle.etc / name).write_text(f"{name}!")
    task = dataclasses.replace(
        TASK,
        resources=Resources(memory_bytes=1 << 20, pids=7, cpu_quota_us=50_000),
        mounts=(
            Mount(target="/b", source="/x"),
            Mount(target="/t", kind="tmpfs", size_bytes=9),
            Mount(target="/a", source="/y", read_only=True),
        ),
        network=Network(mode="host"),
        security=Security(readonly_rootfs=True),
    )
    link = Link("eth0", "", 1400, "10.0.0.2", 24, (Route("0.0.0.0/0", "10.0.0.1"), Route("10.9.0.0/16", "")))
    told = vm_guest.setup(task, bundle, "name", link)
    assert told.split(b"\0") == [
        *(b"hname", b"m1048576", b"p7", b"c50000 100000", b"r"),
        *(b"f/etc/hosts\nhosts!", b"f/etc/hostname\nhostname!", b"f/etc/resolv.conf\nnameserver 10.0.2.3\n"),
        *(b"trw,mode=1777,size=9 /t", b"bro 0 /a", b"brw 1 /b"),
        *(b"neth0 10.0.0.2 24 1400", b"geth0 10.9.0.0 16 -", b"geth0 0.0.0.0 0 10.0.0.1", b""),
    ]
    with pytest.raises(InvalidSpec, match="devices"):
        vm_guest.setup(dataclasses.replace(task, devices=(Device("/dev/null", "/dev/null"),)), bundle, "name", None)


def test_process_beyond_what_a_frame_takes_is_refused() -> None:
    user = {"uid": 1, "gid": 2, "additionalGids": [3, 4]}
    process = {"args": ["a"], "env": ["E=1"], "cwd": "/", "user": user, "capabilities": {"bounding": ["CAP_CHOWN", "CAP_FOWNER"]}}
    assert vm_guest.start(process) == b"aa\0eE=1\0d/\0u1:2,3,4\0k9\0"
    with pytest.raises(InvalidSpec, match="environment"):
        vm_guest.start(process | {"env": ["E=" + "x" * 70_000]})


@given(st.lists(st.tuples(st.sampled_from(Kind), st.integers(0, 0xFFFF), st.binary(max_size=200))), st.integers(1, 50))
def test_frames_come_out_as_they_went_in_whatever_the_pieces(frames: list[tuple[Kind, int, bytes]], size: int) -> None:
    data = b"".join(pack(kind, payload, channel=channel) for kind, channel, payload in frames)
    parser = Parser()
    found = [frame for at in range(0, len(data), size) for frame in parser.feed(data[at : at + size])]
    assert found == [Frame(kind, channel, payload) for kind, channel, payload in frames]


@given(st.binary(max_size=300))
def test_any_bytes_are_frames_or_broken(data: bytes) -> None:
    with suppress(BrokenFrames):
        list(Parser().feed(data))


def test_fields_are_letters_with_texts() -> None:
    assert fields([("a", "one"), ("b", "")]) == b"aone\0b\0"
