"""Mounts, by the system calls themselves."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from zlayer_driver.host.libc import check, libc

_CLONE_FS = 0x200
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_PAGE = 4096
_TABLE = Path("/proc/self/mountinfo")
_IDENTITY = "layers-"  # and device and inode
_READ_ONLY = 1 | 2 | 4  # MS_RDONLY, MS_NOSUID, MS_NODEV
_SPECIAL = re.compile(r"[\\:,]")  # what separates options and layers

libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def mount(source: str, target: Path, kind: str, flags: int = 0, options: str = "") -> None:
    """The system call of that name; `OSError` with the target as its file name."""
    check(libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, options.encode()), str(target))


def unmount(target: Path) -> None:
    """Takes the topmost mount off ``target``, lazily if it is in use; no mount there is fine."""
    number = _umount2(target, _UMOUNT_NOFOLLOW)
    if number == errno.EBUSY:
        number = _umount2(target, _UMOUNT_NOFOLLOW | _MNT_DETACH)
    if number not in (0, errno.EINVAL, errno.ENOENT):
        raise OSError(number, os.strerror(number), str(target))


def _umount2(target: Path, flags: int) -> int:
    return ctypes.get_errno() if libc.umount2(os.fsencode(target), flags) else 0


def sync(directory: Path) -> None:
    """Returns when all that was written to the directory's file system is on its disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        check(libc.syncfs(fd), str(directory))
    finally:
        os.close(fd)


def overlay(target: Path, *, lower: Sequence[Path], upper: Path, work: Path) -> None:
    """Mounts an overlayfs at ``target``; ``lower`` bottom first, at least one.

    Lower directories are named from the directory that they share, which keeps some 140 layers within the one page that mount(2) reads. The
    mount's source is the identity of that directory, so that the mount table tells which layers are in use. ``volatile`` spares a sync of the
    upper layer at unmount (kernel 5.10): nothing of a container outlives a crash of the machine.
    """
    with _names(lower) as names:
        options = f"lowerdir={names.layers},upperdir={names.held(upper)},workdir={names.held(work)}"
        _within(names.base, partial(_mount_overlay, identity(names.base), target.absolute(), _fitting(options, lower, target)))


def overlay_read_only(target: Path, lower: Sequence[Path]) -> None:
    """Shows layers (bottom first) at an empty directory, which is itself the lowest of them: overlayfs takes no single one."""
    with _names(lower) as names:
        options = _fitting(f"lowerdir={names.layers}:{names.held(target)}", lower, target)
        _within(names.base, partial(mount, identity(names.base), target.absolute(), "overlay", _READ_ONLY, options))


def identity(directory: Path) -> str:
    """What tells a directory from all others of this machine, by whatever path or mount namespace it is seen."""
    info = directory.stat()
    return f"{_IDENTITY}{info.st_dev:x}-{info.st_ino:x}"


@dataclass(frozen=True, slots=True)
class Overlay:
    """A mounted overlayfs: ``lower`` bottom first, as its mount named them, from ``base``. That is an `identity`, or empty if it is not known."""

    base: str
    lower: tuple[Path, ...]

    def shows(self, directory: Path) -> bool:
        """Whether the directory is one of the lower ones. In doubt it is: what another tool mounted may name it from anywhere."""
        return any(self._is(lower, directory) for lower in self.lower if lower.name == directory.name)

    def _is(self, lower: Path, directory: Path) -> bool:
        if not lower.is_absolute():
            return self.base in {identity(directory.parent), ""}
        try:
            return lower.samefile(directory)
        except OSError:
            return True


def overlays() -> Sequence[Overlay]:
    """All that are mounted in this mount namespace."""
    return [shown for _, shown in _mounted() if shown is not None]


def overlay_at(target: Path) -> Overlay | None:
    """The overlay that is mounted at ``target``; ``None`` if none is, or something else on top of it."""
    place = os.fsencode(target.absolute())
    return next((shown for at, shown in reversed(_mounted()) if at == place), None)


def _mounted() -> Sequence[tuple[bytes, Overlay | None]]:
    """Every mount's place, and the overlay that it is, in the order of mounting. A kernel without the table has no overlays either."""
    table = _TABLE.read_bytes() if _TABLE.exists() else b""
    return [_entry(line) for line in table.splitlines()]


def _entry(line: bytes) -> tuple[bytes, Overlay | None]:
    place, _, rest = line.partition(b" - ")
    kind, source, options = rest.split(b" ", 2)
    found = re.search(rb"lowerdir=([^, ]*)", options) if kind == b"overlay" else None
    base = source.decode() if source.startswith(_IDENTITY.encode()) else ""
    shown = found and Overlay(base, tuple(Path(os.fsdecode(_plain(name))) for name in reversed(found[1].split(b":"))))
    return _plain(place.split(b" ")[4]), shown


def _plain(field: bytes) -> bytes:
    """A field of mountinfo, in which blanks and backslashes are octal escapes."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


@dataclass(frozen=True, slots=True)
class _Names:
    """How one mount's options name directories: layers relative to ``base``, others by fds that are open as long as this is."""

    base: Path
    layers: str
    stack: ExitStack

    def held(self, path: Path) -> str:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.stack.callback(os.close, fd)
        return f"/proc/self/fd/{fd}"


@contextmanager
def _names(lower: Sequence[Path]) -> Iterator[_Names]:
    base = Path(os.path.commonpath([path.parent for path in lower]))
    layers = ":".join(_SPECIAL.sub(r"\\\g<0>", str(path.relative_to(base))) for path in reversed(lower))
    with ExitStack() as stack:
        yield _Names(base, layers, stack)


def _fitting(options: str, lower: Sequence[Path], target: Path) -> str:
    if len(options) >= _PAGE:
        raise OSError(errno.E2BIG, f"{len(lower)} layers are more than one mount can name", str(target))
    return options


def _mount_overlay(source: str, target: Path, options: str) -> None:
    try:
        mount(source, target, "overlay", 0, f"{options},volatile")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        mount(source, target, "overlay", 0, options)


def _within(directory: Path, action: Callable[[], None]) -> None:
    """Runs ``action`` with ``directory`` as its working directory, in a thread of its own that no longer shares the process's."""

    def run() -> None:
        check(libc.unshare(_CLONE_FS), "unshare")
        os.chdir(directory)
        action()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(run).result()
