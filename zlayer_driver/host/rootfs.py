"""Reading inside a container's file tree, where every name may be a trap: links never lead out of it."""

from __future__ import annotations

import ctypes
import os
import stat
from pathlib import Path

from zlayer_driver.errors import InvalidSpec
from zlayer_driver.host.libc import check, libc

# openat2(2): the number is the same on every architecture; struct open_how is flags, mode, resolve.
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def open_in(root: Path, path: str, flags: int = os.O_RDONLY) -> int:
    """An fd of ``path`` as the tree itself sees it; `OSError` with the path as its file name."""
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
        return check(libc.syscall(_SYS_OPENAT2, root_fd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)), path)
    finally:
        os.close(root_fd)


def exists_in(root: Path, path: str) -> bool:
    try:
        os.close(open_in(root, path, os.O_PATH))
    except OSError:
        return False
    return True


def read_in(root: Path, path: str, limit_bytes: int) -> bytes:
    """The first bytes of a regular file of the tree; empty if it has no such file. `InvalidSpec` if something else has its name."""
    try:
        fd = open_in(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InvalidSpec(f"the image's {path} cannot be read: {error.strerror}") from error
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidSpec(f"the image's {path} is not a regular file")
        return file.read(limit_bytes)
