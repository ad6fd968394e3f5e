"""Members that are made by runs, on both twins, against the same members read one by one: the same tree, or the same refusal."""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles.images import archive, member
from tests.replay.twins import TWINS
from zlayer_driver import fastpath
from zlayer_driver.image.unpack import unpack
from zlayer_driver.image.values import Limits, Malformed

pytestmark = pytest.mark.needs("root", "linux")

FORMS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
NAMES = st.sampled_from(
    ["a", "b", "./a", "d", "d/", "d/a", "d/b", "d/c", "./d/c", "d//c", "d/e/f", "d/.wh.a", ".wh.d", "l/a", "l", "../x", "d/."]
)
KINDS = st.sampled_from([tarfile.REGTYPE] * 5 + [tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
TIMES = st.sampled_from(["1", "1.5", "17.123456789", "-2", "99999999999", "x", ""])
PAX = st.dictionaries(st.sampled_from(["mtime", "atime", "path", "size"]), TIMES, max_size=2)
DAMAGE = st.lists(st.tuples(st.integers(0, 1 << 14), st.integers(0, 255)), max_size=2)


@st.composite
def members(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    kind = draw(KINDS)
    content = draw(st.binary(max_size=1100)) if kind in {tarfile.REGTYPE, tarfile.AREGTYPE} else b""
    mode, owner, mtime = draw(st.integers(0, 0o7777)), draw(st.integers(0, 0o7777777)), draw(st.integers(0, 2**33 - 1))
    target = draw(NAMES) if kind in {tarfile.SYMTYPE, tarfile.LNKTYPE} else ""
    headers = draw(PAX) if draw(st.booleans()) else {}
    return member(draw(NAMES), content, kind=kind, mode=mode, uid=owner, gid=owner, mtime=mtime, linkname=target, pax_headers=headers)


def told(root: Path) -> dict[str, Any]:
    """A tree: type, mode, owners, time, count of names and content of all that is in it."""
    tree = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        time_ns = 0 if stat.S_ISCHR(info.st_mode) else info.st_mtime_ns  # whiteouts have none
        tree[str(path.relative_to(root))] = info.st_mode, info.st_uid, info.st_gid, time_ns, info.st_nlink, content
    return tree


def outcome(pieces: Sequence[bytes]) -> Any:
    with tempfile.TemporaryDirectory() as work:
        try:
            return unpack(pieces, Path(work), limits=Limits(entries=6)), told(Path(work))
        except Malformed as error:
            return str(error)


@settings(deadline=None)
@given(st.lists(members(), max_size=8), FORMS, DAMAGE, st.integers(1, 6000))
def test_runs_change_nothing(made: list[tuple[tarfile.TarInfo, bytes]], form: int, damage: list[tuple[int, int]], cut: int) -> None:
    try:
        whole = bytearray(archive(*made, form=form))
    except ValueError:
        return  # ustar cannot say it
    for at, value in damage:
        whole[at % len(whole)] = value
    expected = outcome([bytes(whole[at : at + 500]) for at in range(0, len(whole), 500)])  # less than a header: no runs
    for twin in TWINS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fastpath, "write_members", twin.write_members)
            assert outcome([bytes(whole)]) == expected
            assert outcome([bytes(whole[at : at + cut]) for at in range(0, len(whole), cut)]) == expected


def test_runs_happen(tmp_path: Path) -> None:
    """What the other test would not miss."""
    seen = []

    def write_members(*asked: Any) -> tuple[int, int]:
        seen.append(made := fastpath_write(*asked))
        return made

    fastpath_write = fastpath.write_members
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastpath, "write_members", write_members)
        unpack([archive(*(member(f"d/{number}", b"x", uid=os.getuid()) for number in range(9)))], tmp_path, limits=Limits())
    assert [count for count, _ in seen] == [8]
