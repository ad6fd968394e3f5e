"""Any sequence of entries, with few names so that they collide: it unpacks or is refused, and nothing beside the layer changes."""

from __future__ import annotations

import os
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles.images import archive, member
from zlayer_driver.image.unpack import unpack
from zlayer_driver.image.values import Limits, Malformed

pytestmark = pytest.mark.needs("root", "linux")

PARTS = st.sampled_from(["a", "b", "c", "..", ".", "", ".wh.a", ".wh.b", ".wh..wh..opq", "x" * 300])
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
HONEST = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)
TARGETS = st.one_of(HONEST, NAMES, st.sampled_from(["/", "/a", "../..", "../outside", "/proc/self/cwd", "a/../../b", "."]))
KINDS = st.sampled_from(
    [
        tarfile.REGTYPE,
        tarfile.DIRTYPE,
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
    ]
)


@st.composite
def members(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    kind = draw(KINDS)
    content = draw(st.binary(max_size=20)) if kind == tarfile.REGTYPE else b""
    target = draw(TARGETS) if kind in {tarfile.SYMTYPE, tarfile.LNKTYPE} else ""
    return member(draw(st.one_of(HONEST, HONEST, NAMES)), content, kind=kind, linkname=target, devmajor=1, devminor=3)


def seen(root: Path) -> list[tuple[object, ...]]:
    """All that lies in a directory but the layer's own tree."""
    return [
        (path, info.st_mode, info.st_nlink, info.st_size, info.st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if "layer" not in path.parts
        for info in [path.lstat()]
    ]


@settings(deadline=None)
@given(st.lists(members(), max_size=12))
def test_nothing_gets_out(made: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        (root / "outside").mkdir()
        (root / "outside/a").write_bytes(b"canary")
        (root / "layer").mkdir()
        before = seen(root)
        with suppress(Malformed):
            unpack([archive(*made)], root / "layer", limits=Limits())
        assert seen(root) == before
        assert all(os.major(path.lstat().st_rdev) in {0, 1} for path in (root / "layer").rglob("*"))
