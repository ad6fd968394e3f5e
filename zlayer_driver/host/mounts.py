"""Mounts, by the system calls themselves."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

_CLONE_FS = 0x200
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_PAGE = 4096
_SPECIAL = re.compile(r"[\\:,]")  # what separates options and layers

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def mount(source: str, target: Path, kind: str, flags: int = 0, options: str = "") -> None:
    """The system call of that name; `OSError` with the target as its file name."""
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def unmount(target: Path) -> None:
    """Takes the topmost mount off ``target``, lazily if it is in use; no mount there is fine."""
    number = _umount2(target, _UMOUNT_NOFOLLOW)
    if number == errno.EBUSY:
        number = _umount2(target, _UMOUNT_NOFOLLOW | _MNT_DETACH)
    if number not in (0, errno.EINVAL, errno.ENOENT):
        raise OSError(number, os.strerror(number), str(target))


def _umount2(target: Path, flags: int) -> int:
    return ctypes.get_errno() if _libc.umount2(os.fsencode(target), flags) != 0 else 0


def overlay(target: Path, *, lower: Sequence[Path], upper: Path, work: Path) -> None:
    """Mounts an overlayfs at ``target``; ``lower`` bottom first, at least one.

    Lower directories are named from the directory that they share, which keeps some 140 layers within the one page that mount(2) reads,
    and lets the mount table tell which layers are in use. ``volatile`` spares a sync of the upper layer at unmount (kernel 5.10):
    nothing of a container outlives a crash of the machine.
    """
    base = Path(os.path.commonpath([path.parent for path in lower]))
    layers = ":".join(_SPECIAL.sub(r"\\\g<0>", str(path.relative_to(base))) for path in reversed(lower))
    with ExitStack() as stack:

        def held(path: Path) -> str:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            return f"/proc/self/fd/{fd}"

        options = f"lowerdir={layers},upperdir={held(upper)},workdir={held(work)}"
        if len(options) >= _PAGE:
            raise OSError(errno.E2BIG, f"{len(lower)} layers are more than one mount can name", str(target))
        _within(base, partial(_mount_overlay, target.absolute(), options))


def _mount_overlay(target: Path, options: str) -> None:
    try:
        mount("overlay", target, "overlay", 0, f"{options},volatile")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        mount("overlay", target, "overlay", 0, options)


def _within(directory: Path, action: Callable[[], None]) -> None:
    """Runs ``action`` with ``directory`` as its working directory, in a thread of its own that no longer shares the process's."""

    def run() -> None:
        if _libc.unshare(_CLONE_FS) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "unshare")
        os.chdir(directory)
        action()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(run).result()
