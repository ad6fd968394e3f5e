"""Who a container runs as: a user as people write it, looked up in the image's own tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zlayer_driver.errors import InvalidSpec
from zlayer_driver.host.rootfs import read_in

_TABLE_LIMIT = 1 << 20
_ID_LIMIT = 1 << 32
_DYNAMIC = "nomad-"  # a user of Nomad's dynamic pool: the number is both ids, and no table has it


@dataclass(frozen=True, slots=True)
class User:
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


def resolve(rootfs: Path, text: str, added: Sequence[str] = ()) -> User:
    """Of ``name``, ``uid``, ``name:group`` and the like; empty is root. ``added`` are further groups.

    `InvalidSpec` for a name that the image does not know.
    """
    user = _resolve(rootfs, text)
    further = (_group(rootfs, group) for group in added)
    return replace(user, groups=tuple(dict.fromkeys([*user.groups, *further]))) if added else user


def _resolve(rootfs: Path, text: str) -> User:
    who, _, group = text.partition(":")
    if who.startswith(_DYNAMIC) and (number := _number(who.removeprefix(_DYNAMIC))) is not None:
        return User(number, number)
    name, uid, gid, home = _user(rootfs, who or "0")
    if group:
        return User(uid, _group(rootfs, group), home=home)
    others = tuple(row_gid for _, row_gid, members in _groups(rootfs) if name and name in members and row_gid != gid)
    return User(uid, gid, others, home)


def _user(rootfs: Path, who: str) -> tuple[str, int, int, str]:
    number = _number(who)
    for row in _rows(rootfs, "/etc/passwd", 7):
        uid, gid = _number(row[2]), _number(row[3])
        if uid is not None and gid is not None and (row[0] == who or uid == number):
            return row[0], uid, gid, row[5] or "/"
    if number is None:
        raise InvalidSpec(f"user {who!r} is not in the image's /etc/passwd", hint="use a user that the image has, or a number")
    return "", number, 0, "/root" if number == 0 else "/"


def _group(rootfs: Path, who: str) -> int:
    number = _number(who)
    if number is not None:
        return number
    for name, gid, _ in _groups(rootfs):
        if name == who:
            return gid
    raise InvalidSpec(f"group {who!r} is not in the image's /etc/group", hint="use a group that the image has, or a number")


def _groups(rootfs: Path) -> Iterator[tuple[str, int, list[str]]]:
    for row in _rows(rootfs, "/etc/group", 4):
        gid = _number(row[2])
        if gid is not None:
            yield row[0], gid, row[3].split(",")


def _rows(rootfs: Path, path: str, fields: int) -> Iterator[list[str]]:
    for line in read_in(rootfs, path, _TABLE_LIMIT).decode("utf-8", "replace").splitlines():
        row = line.split(":")
        if len(row) >= fields:
            yield row


def _number(text: str) -> int | None:
    """A uid or gid; the highest 32-bit value means «unchanged» to the kernel, and so is none."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 10:
        return None
    return number if (number := int(text)) < _ID_LIMIT - 1 else None
