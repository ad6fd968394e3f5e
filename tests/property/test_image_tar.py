"""The archive reader against Python's tarfile: what one writes the other must read, and what is damaged must be refused, not believed."""

from __future__ import annotations

import tarfile
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles.images import archive, member
from zlayer_driver.image.tar import Reader, Source
from zlayer_driver.image.values import Malformed

FORMS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=60)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])


@st.composite
def members(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(draw(NAMES))
    info.type = draw(KINDS)
    content = draw(st.binary(max_size=2000)) if info.isreg() else b""
    info.size = len(content)
    info.mode = draw(st.integers(0, 0o7777))
    info.uid, info.gid = draw(st.integers(0, 0o7777777)), draw(st.integers(0, 0o7777777))
    info.mtime = draw(st.integers(0, 2**33 - 1))
    if info.issym() or info.islnk():
        info.linkname = draw(NAMES)
    return info, content


def pieces(whole: bytes, sizes: list[int]) -> list[bytes]:
    """The bytes cut at arbitrary places."""
    cut, at = [], 0
    for size in sizes:
        cut.append(whole[at : at + size])
        at += size
    return [*cut, whole[at:]]


@given(st.lists(members(), max_size=6), FORMS, st.lists(st.integers(0, 1500), max_size=8))
def test_reads_what_tarfile_writes(made: list[tuple[tarfile.TarInfo, bytes]], form: int, sizes: list[int]) -> None:
    try:
        whole = archive(*made, form=form)
    except ValueError:
        return  # ustar cannot say it
    reader = Reader(Source(pieces(whole, sizes)))
    read = [(entry, b"".join(reader.data())) for entry in reader]
    assert [content for _, content in read] == [content for _, content in made]
    for (entry, _), (info, _) in zip(read, made, strict=True):
        assert entry.name.decode().rstrip("/") == info.name
        assert (entry.kind.value, entry.mode, entry.uid, entry.gid) == (info.type, info.mode, info.uid, info.gid)
        assert entry.mtime_ns == int(info.mtime) * 1_000_000_000
        assert entry.target.decode() == info.linkname


@given(st.lists(members(), min_size=1, max_size=3), FORMS, st.data())
def test_damage_ends_in_a_refusal_or_in_entries(made: list[tuple[tarfile.TarInfo, bytes]], form: int, data: st.DataObject) -> None:
    try:
        whole = bytearray(archive(*made, form=form))
    except ValueError:
        return
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=8)):
        whole[at] = value
    reader = Reader(Source([bytes(whole)]))
    try:
        read = sum(len(piece) for _ in reader for piece in reader.data())
    except Malformed:
        return
    assert read <= len(whole)


@given(st.binary(max_size=3000))
def test_any_bytes(content: bytes) -> None:
    reader = Reader(Source([content]))
    try:
        assert all(len(b"".join(reader.data())) <= len(content) for _ in reader)
    except Malformed:
        return


def extended(kind: bytes, key: str, size: int) -> bytes:
    """A pax header with one value of that size."""
    rest = f" {key}=".encode() + b"a" * size + b"\n"
    info, record = member("x", f"{len(rest) + len(str(len(rest)))}".encode() + rest, kind=kind)
    return info.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-len(record) % 512)


def test_headers_before_one_entry_are_limited_together() -> None:
    with pytest.raises(Malformed, match="extended headers of"):
        list(Reader(Source(extended(tarfile.XHDTYPE, f"SCHILY.xattr.user.{number}", 10_000) for number in range(300))))


def test_what_nobody_asks_of_global_headers_is_not_kept() -> None:
    file, _ = member("file")

    def pieces() -> Iterator[bytes]:
        for number in range(100):
            yield extended(tarfile.XGLTYPE, f"key{number}", 500_000)
            yield file.tobuf(tarfile.USTAR_FORMAT)

    tracemalloc.start()
    try:
        assert sum(1 for _ in Reader(Source(pieces()))) == 100
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
