"""What a guest boots from: the distribution's kernel, and an initramfs of the agent and the modules that it needs."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import subprocess
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import zstandard

from zlayer_driver.errors import Unsupported

AGENT = Path(__file__).parent.parent / "guest" / "agent"
_BASES = (Path("/usr/local/lib/zlayer/kernel"), Path("/"))
# What is loaded at boot, and what later where it is needed: lists of the agent (`guest/modules.c`).
_MODULES = {
    "boot": ("virtio_mmio", "virtio_pci", "virtio_console", "virtio_blk", "erofs", "overlay", "virtio_net", "virtiofs"),
    "wireguard": ("wireguard",),
}
_POINTS = ("dev", "lower", "rw", "root", "share", "cgroup", "modules")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_ELF = b"\x7fELF"
_ARCHITECTURE = "x86_64"
_LIMIT = 1 << 28


@dataclass(frozen=True, slots=True)
class BootFiles:
    """``kernel`` is an ELF file, which QEMU enters by its PVH note; ``release`` is what the guest's ``uname -r`` says."""

    kernel: Path
    initrd: Path
    release: str


@dataclass(frozen=True, slots=True)
class KernelPackage:
    image: Path
    modules: Path

    @property
    def release(self) -> str:
        return self.modules.name


def find_kernel(configured: str = "") -> KernelPackage:
    """The newest kernel with its modules, below the directory that is configured or where kernels lie; `Unsupported` without one."""
    if os.uname().machine != _ARCHITECTURE:
        raise Unsupported(f"VMs are for {_ARCHITECTURE} nodes, and this is {os.uname().machine}")
    bases = (Path(configured),) if configured else _BASES
    found = [
        KernelPackage(image, modules)
        for base in bases
        for image in base.glob("boot/vmlinuz-*")
        if (modules := base / "lib/modules" / image.name.removeprefix("vmlinuz-")).is_dir()
    ]
    if not found:
        raise Unsupported(
            f"no kernel for guests below {' or '.join(map(str, bases))}",
            hint="unpack a package such as linux-image-cloud-amd64 there, or name its directory as vm_kernel in the plugin's config",
        )
    return max(found, key=lambda package: [int(part) for part in re.findall(r"\d+", package.release)])


def prepare(directory: Path, package: KernelPackage) -> BootFiles:
    """Made once for this kernel and this agent, whole or not at all; a second call finds the files."""
    made = directory / _key(package)
    files = BootFiles(made / "kernel", made / "initrd", package.release)
    if not made.is_dir():
        half = directory / f"{made.name}.{os.getpid()}"
        half.mkdir(parents=True, exist_ok=True)
        (half / "kernel").write_bytes(elf_kernel(package.image.read_bytes()))
        (half / "initrd").write_bytes(initramfs(package.modules))
        try:
            half.rename(made)
        except OSError:  # another was faster
            shutil.rmtree(half)
    return files


def _key(package: KernelPackage) -> str:
    info = package.image.stat()
    text = f"{package.image} {info.st_size} {info.st_mtime_ns} {hashlib.sha256(AGENT.read_bytes()).hexdigest()} {_MODULES}"
    return f"{package.release}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def elf_kernel(image: bytes) -> bytes:
    """The ELF file in a bzImage."""
    if image.startswith(_ELF):
        return image
    for magic, decompress in _DECOMPRESSORS.items():
        at = image.find(magic)
        while at >= 0:
            with suppress(OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError):  # bytes that only look like the magic number
                if (kernel := decompress(image[at:])).startswith(_ELF):
                    return kernel
            at = image.find(magic, at + 1)
    raise Unsupported("the kernel for guests is compressed in a way that is not known here", hint="use a distribution's own kernel")


def _lz4(data: bytes) -> bytes:
    return subprocess.run(["lz4", "-d", "-c"], input=data, capture_output=True, check=False).stdout


# The compressed kernel inside a bzImage, by its magic number; the boot protocol of the kernel's Documentation/x86 names no format.
# Each takes what can be decompressed: the payload is followed by other bytes.
_DECOMPRESSORS: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"\x02\x21\x4c\x18": _lz4,
    b"\x1f\x8b\x08": lambda data: zlib.decompressobj(31).decompress(data, _LIMIT),
    b"\xfd7zXZ\x00": lambda data: lzma.LZMADecompressor().decompress(data, _LIMIT),
    b"\x28\xb5\x2f\xfd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}


def initramfs(modules: Path) -> bytes:
    """A cpio archive (format «newc»: cpio(5)) of the agent as ``/init`` and the modules in the order to load them in."""
    found = _Modules(modules)
    lists = {name: list(found.in_order(wanted)) for name, wanted in _MODULES.items()}
    files = [(name, stat.S_IFDIR | 0o755, b"") for name in _POINTS]
    files += [("init", stat.S_IFREG | 0o755, AGENT.read_bytes())]
    files += [(f"modules/{name}.ko", stat.S_IFREG | 0o644, data) for listed in lists.values() for name, data in listed]
    files += [
        (f"modules/{name}", stat.S_IFREG | 0o644, b"".join(b"%s.ko\n" % module.encode() for module, _ in listed))
        for name, listed in lists.items()
    ]
    return b"".join(_entry(number, *file) for number, file in enumerate([*files, ("TRAILER!!!", 0, b"")], 1))


def _entry(number: int, name: str, mode: int, data: bytes) -> bytes:
    raw = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


class _Modules:
    """Of a kernel package; each is given once. One that the package does not have is in the kernel itself."""

    def __init__(self, modules: Path) -> None:
        self._files = {path.name.partition(".ko")[0].replace("-", "_"): path for path in modules.glob("kernel/**/*.ko*")}

    def in_order(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Each after those it depends on."""
        for name in names:
            if path := self._files.pop(name, None):
                data = _module(path)
                found = _DEPENDS.search(data)
                yield from self.in_order((found[1].decode() if found else "").replace("-", "_").split(","))
                yield name, data


def _module(path: Path) -> bytes:
    data = path.read_bytes()
    match path.suffix:
        case ".xz":
            return lzma.decompress(data)
        case ".zst":
            return zstandard.ZstdDecompressor().decompressobj().decompress(data)
        case ".gz":
            return gzip.decompress(data)
        case _:
            return data
