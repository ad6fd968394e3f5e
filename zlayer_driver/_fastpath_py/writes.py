"""Many small files at once; what the compiled twin does in one go is a loop here."""

from __future__ import annotations

import os

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write_files(rows: list[tuple[int, bytes, bytes, int, int, int, int]]) -> int:
    """Makes new files in order, and stops at the first that fails, which may be there in part: how many were made.

    A row is (open directory, name, content, uid, gid, mode, mtime in ns).
    """
    for done, row in enumerate(rows):
        try:
            _write(*row)
        except OSError:
            return done
    return len(rows)


def _write(folder: int, name: bytes, content: bytes, uid: int, gid: int, mode: int, mtime_ns: int) -> None:
    fd = os.open(name, _NEW, 0o600, dir_fd=folder)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fchown(fd, uid, gid)  # before the mode: it takes setuid bits away
        os.fchmod(fd, mode)
        os.utime(fd, ns=(mtime_ns, mtime_ns))
    finally:
        os.close(fd)
