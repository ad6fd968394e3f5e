"""Small files of a layer's archive, from its bytes to the disk; what the compiled twin does without Python's lock is a loop here."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 512
_NAME = 100
_OCTAL = re.compile(rb"([0-7]+)[ \0]+")
_LENGTH = re.compile(rb"([0-9]{1,3}) ")
_TIME = re.compile(rb"([0-9]{1,10})(?:\.([0-9]{1,9}))?")


class _File(NamedTuple):
    name: bytes
    content: memoryview
    uid: int
    gid: int
    mode: int
    mtime_ns: int


def write_members(archive: memoryview, folder: int, prefix: bytes, largest: int, most: int) -> tuple[int, int]:
    """Makes files of an archive's first members in an open directory, as far as they are plain: how many, and the bytes that they take.

    Plain members are regular files of at most ``largest`` bytes, named ``prefix`` and one component, with plain numbers in a header whose
    checksum fits, and nothing but times in a pax header. What follows the last of them, or ``most`` of them, is left: other members,
    damage, the archive's end, and a file that cannot be made, which may be there in part.
    """
    rest, count = memoryview(archive), 0
    whole = len(rest)
    while count < most:
        file, size = _described(rest, prefix)
        if file is None or len(file.content) > largest or not _made(folder, file):
            break
        rest = rest[size:]
        count += 1
    return count, whole - len(rest)


def _described(rest: memoryview, prefix: bytes) -> tuple[_File | None, int]:
    """A plain member that is here in whole, and the bytes that it takes, its padding included."""
    mtime_ns, before = -1, 0
    if len(rest) >= 3 * _BLOCK and rest[156] == ord("x"):
        size = _octal(rest[124:136])
        if not _is_whole(rest[:_BLOCK]) or not 0 < size <= _BLOCK:
            return None, 0
        if (told := _only_times(bytes(rest[_BLOCK : _BLOCK + size]))) is None:
            return None, 0
        mtime_ns, before = told, 2 * _BLOCK
    block, after = bytes(rest[before : before + _BLOCK]), rest[before + _BLOCK :]
    if len(block) < _BLOCK or block[156:157] not in {b"0", b"\0"} or not _is_whole(block):
        return None, 0
    name = _last_name(block, prefix)
    mode, uid, gid, size = (_octal(block[at:end]) for at, end in ((100, 108), (108, 116), (116, 124), (124, 136)))
    if mtime_ns < 0:
        mtime_ns = _octal(block[136:148]) * 1_000_000_000
    padded = -(-size // _BLOCK) * _BLOCK
    if not name or min(mode, uid, gid, size, mtime_ns) < 0 or padded > len(after):
        return None, 0
    return _File(name, after[:size], uid, gid, mode & 0o7777, mtime_ns), before + _BLOCK + padded


def _last_name(block: bytes, prefix: bytes) -> bytes:
    """The last component of a name that is ``prefix`` and nothing else before it; empty for other names."""
    name = block[:_NAME].split(b"\0", 1)[0]
    last = name[len(prefix) :]
    elsewhere = block[257:263] == b"ustar\0" and block[345]
    if elsewhere or not name.startswith(prefix) or b"/" in last or last in {b".", b".."} or last.startswith(b".wh."):
        return b""
    return last


def _octal(field: bytes | memoryview) -> int:
    """Digits, then at least one blank or NUL to the field's end; -1 for anything else."""
    match = _OCTAL.fullmatch(field)
    return int(match[1], 8) if match else -1


def _is_whole(block: bytes | memoryview) -> bool:
    """Whether a header's checksum is right; its own field counts as blanks."""
    return _octal(block[148:156]) == sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")


def _only_times(records: bytes) -> int | None:
    """The last change that pax records tell of, in ns, -1 if of none; ``None`` if they tell anything but times."""
    changed, at = -1, 0
    while at < len(records):
        match = _LENGTH.match(records, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() + 6 < end <= len(records) or records[end - 1 : end] != b"\n":
            return None
        key, value = records[match.end() : match.end() + 6], records[match.end() + 6 : end - 1]
        if key == b"mtime=":
            time = _TIME.fullmatch(value)
            if time is None:
                return None
            changed = int(time[1]) * 1_000_000_000 + int((time[2] or b"0").ljust(9, b"0"))
        elif key not in {b"atime=", b"ctime="}:
            return None
        at = end
    return changed


def _made(folder: int, file: _File) -> bool:
    try:
        fd = os.open(file.name, _NEW, 0o600, dir_fd=folder)
    except OSError:
        return False
    try:
        rest = file.content
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fchown(fd, file.uid, file.gid)  # before the mode: it takes setuid bits away
        os.fchmod(fd, file.mode)
        os.utime(fd, ns=(file.mtime_ns, file.mtime_ns))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
