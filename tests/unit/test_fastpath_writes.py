"""Many small files at once, on both twins."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.replay.twins import TWINS

pytestmark = pytest.mark.needs("linux")

Row = tuple[int, bytes, bytes, int, int, int, int]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def row(folder: int, name: bytes, content: bytes = b"x", mode: int = 0o640, mtime_ns: int = 5) -> Row:
    return folder, name, content, os.getuid(), os.getgid(), mode, mtime_ns


@pytest.fixture(params=TWINS, ids=["compiled", "python"])
def twin(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_files_are_as_the_rows_say(twin: Any, folder: int, tmp_path: Path) -> None:
    contents = {b"empty": b"", b"\xff": b"1", b"large": os.urandom(300_000)}
    rows = [row(folder, name, content, 0o4755, -1_500_000_001) for name, content in contents.items()]
    assert twin.write_files(rows) == 3
    assert {os.fsencode(path.name): path.read_bytes() for path in tmp_path.iterdir()} == contents
    for path in tmp_path.iterdir():
        info = path.stat()
        assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns) == (
            0o4755,
            os.getuid(),
            os.getgid(),
            -1_500_000_001,
        )


@pytest.mark.parametrize("name", [b"there", b"link", b"folder", b"none/x", b"x" * 300, b""])
def test_the_first_that_fails_is_the_last(twin: Any, folder: int, tmp_path: Path, name: bytes) -> None:
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "link").symlink_to("outside")
    (tmp_path / "folder").mkdir()
    assert twin.write_files([row(folder, b"a"), row(folder, name), row(folder, b"b")]) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a", "there", "link", "folder"}
    assert (tmp_path / "there").read_bytes() == b"old"


def test_a_closed_directory_no_rows_and_no_name(twin: Any, folder: int) -> None:
    closed = os.dup(folder)
    os.close(closed)
    assert twin.write_files([row(closed, b"a")]) == 0
    assert twin.write_files([]) == 0
    with pytest.raises(ValueError, match="null"):
        twin.write_files([row(folder, b"a\0b")])
