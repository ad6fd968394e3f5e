"""Small files straight from an archive, on both twins."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.images import archive, directory, member, symlink
from tests.replay.twins import TWINS

pytestmark = pytest.mark.needs("linux")

OWNER = {"uid": os.getuid(), "gid": os.getgid()}
ALL = 1 << 20
BLOCK = 512


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture(params=TWINS, ids=["compiled", "python"])
def twin(request: pytest.FixtureRequest) -> Any:
    return request.param


def file(name: str, content: bytes = b"x", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, content, **{**OWNER, **fields})


def members(*made: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive without its end."""
    whole = archive(*made, form=form)
    return whole.rstrip(b"\0").ljust(-(-len(whole.rstrip(b"\0")) // BLOCK) * BLOCK, b"\0")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_files_are_as_the_archive_says(twin: Any, folder: int, tmp_path: Path, form: int) -> None:
    contents = {"d/one": b"1", "d/block": b"x" * BLOCK, "d/large": os.urandom(300_000)}
    whole = members(*(file(name, content, mode=0o4755, mtime=1_500_000_001) for name, content in contents.items()), form=form)
    assert twin.write_members(memoryview(whole), folder, b"d/", ALL, ALL) == (3, len(whole))
    assert {f"d/{path.name}": path.read_bytes() for path in tmp_path.iterdir()} == contents
    for path in tmp_path.iterdir():
        info = path.stat()
        assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o4755, *OWNER.values())
        assert info.st_mtime_ns == 1_500_000_001_000_000_000


@pytest.mark.parametrize(
    ("headers", "expected_ns"),
    [
        ({"mtime": "12.034"}, 12_034_000_000),
        ({"mtime": "1700000000", "atime": "1.5", "ctime": "-3"}, 1_700_000_000_000_000_000),
        ({"atime": "7.5"}, 5_000_000_000),
    ],
)
def test_times_of_a_pax_header(twin: Any, folder: int, tmp_path: Path, headers: dict[str, str], expected_ns: int) -> None:
    whole = members(file("a", pax_headers=headers, mtime=5), file("b"))
    assert twin.write_members(memoryview(whole), folder, b"", ALL, ALL) == (2, len(whole))
    assert (tmp_path / "a").stat().st_mtime_ns == expected_ns


@pytest.mark.parametrize(
    "odd",
    [
        file("d/there"),
        file("d/link"),
        file("d/folder"),
        file("d/sub/x"),
        file("d/."),
        file("d/.."),
        file("d/.wh.x"),
        file("e/x"),
        file("d"),
        file("d/"),
        file("d/" + "long" * 60),
        file("d/large", bytes(2001)),
        file("d/x", pax_headers={"SCHILY.xattr.user.x": "1"}),
        file("d/x", pax_headers={"path": "d/y"}),
        file("d/x", pax_headers={"mtime": "-1"}),
        file("d/x", pax_headers={"mtime": "1.1234567890"}),
        file("d/x", pax_headers={"mtime": "99999999999"}),
        file("d/x", pax_headers={"comment": "much " * 200}),
        file("d/x", uid=1 << 22),
        directory("d/x", **OWNER),
        symlink("d/x", "y", **OWNER),
    ],
    ids=lambda odd: f"{odd[0].name[:9]}-{'-'.join(odd[0].pax_headers)}",
)
def test_what_is_odd_is_left_to_others(twin: Any, folder: int, tmp_path: Path, odd: tuple[tarfile.TarInfo, bytes]) -> None:
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "link").symlink_to("outside")
    (tmp_path / "folder").mkdir()
    whole = members(file("d/a"), odd, file("d/b"))
    assert twin.write_members(memoryview(whole), folder, b"d/", 2000, ALL) == (1, 2 * BLOCK)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "there", "link", "folder"}
    assert (tmp_path / "there").read_bytes() == b"old"


def test_damage_ends_a_run(twin: Any, folder: int, tmp_path: Path) -> None:
    whole = members(file("a", b"1" * 600), file("b", b"2"))
    for at in (0, 100, 110, 120, 130, 140, 150, 156, 257, 300, 511):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        assert twin.write_members(memoryview(damaged), folder, b"", ALL, ALL) == (0, 0)
    assert not list(tmp_path.iterdir())


def test_the_end_of_what_is_at_hand_and_the_most(twin: Any, folder: int) -> None:
    whole = members(file("a", b"1" * 600), file("b", b"2"), file("c", b"3"))
    first = 3 * BLOCK
    for end in (0, 1, 511, 512, first - 1):
        assert twin.write_members(memoryview(whole)[:end], folder, b"", ALL, ALL) == (0, 0)
    assert twin.write_members(memoryview(whole), folder, b"", ALL, 0) == (0, 0)
    assert twin.write_members(memoryview(whole), folder, b"", ALL, 1) == (1, first)
    assert twin.write_members(memoryview(whole)[first:-1], folder, b"", ALL, ALL) == (1, 2 * BLOCK)
    assert twin.write_members(memoryview(bytes(BLOCK)), folder, b"", ALL, ALL) == (0, 0)
    assert twin.write_members(memoryview(whole), folder, b"x" * 101, ALL, ALL) == (0, 0)


def test_a_closed_directory(twin: Any, folder: int) -> None:
    closed = os.dup(folder)
    os.close(closed)
    assert twin.write_members(memoryview(members(file("a"))), closed, b"", ALL, ALL) == (0, 0)
