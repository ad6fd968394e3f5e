"""Layers that attack, against an unpacker beside a canary: the stored corpus, and what is made here."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles import hostile
from tests.doubles.images import archive, directory, hard_link, member, symlink
from zlayer_driver.image.manifest import parse_manifest
from zlayer_driver.image.stream import inflated
from zlayer_driver.image.unpack import Unpacked, unpack
from zlayer_driver.image.values import MIB, Limits, Malformed

pytestmark = pytest.mark.needs("root", "linux")


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory beside the layer's; the test fails if it is not as it was."""
    canary = tmp_path / "outside"
    canary.mkdir()
    (canary / "file").write_bytes(b"canary")
    before = canary.stat().st_mtime_ns, (canary / "file").stat()
    yield canary
    assert (canary.stat().st_mtime_ns, (canary / "file").stat()) == before
    assert (canary / "file").read_bytes() == b"canary"


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    path = tmp_path / "layer"
    path.mkdir()
    return path


def apply(layer: Path, *members: tuple[tarfile.TarInfo, bytes], limits: Limits | None = None) -> Unpacked:
    return unpack([archive(*members)], layer, limits=limits or Limits())


def names(layer: Path) -> set[str]:
    return {str(path.relative_to(layer)) for path in layer.rglob("*")}


@pytest.fixture
def canary() -> Iterator[Path]:
    """What the stored corpus aims at, as `outside`: at one place, so for one test at a time, whichever process runs it."""
    path = Path(hostile.CANARY)
    lock = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    path.mkdir(mode=0o700)
    (path / "file").write_bytes(b"canary")
    (path / "file").chmod(0o600)
    before = path.stat(), (path / "file").stat()
    yield path
    after = path.stat(), (path / "file").stat()
    shutil.rmtree(path)
    os.close(lock)
    assert [(info.st_mode, info.st_mtime_ns, info.st_ctime_ns, info.st_nlink) for info in after] == [
        (info.st_mode, info.st_mtime_ns, info.st_ctime_ns, info.st_nlink) for info in before
    ]


def test_the_corpus_is_what_its_table_says() -> None:
    stored = {path.name: path.read_bytes() for path in hostile.ROOT.iterdir() if path.suffix != ".md"}
    assert stored == {name: case.content for name, case in hostile.CORPUS.items()}
    assert (hostile.ROOT / "README.md").read_text() == hostile.table()


@pytest.mark.parametrize("name", hostile.CORPUS)
def test_the_corpus_does_no_harm(layer: Path, canary: Path, name: str) -> None:
    reason, content = hostile.CORPUS[name].reason, (hostile.ROOT / name).read_bytes()
    limits = Limits(layer_bytes=16 << 20, ratio=100, ratio_free_bytes=MIB)

    def take() -> None:
        if name.endswith(".json"):
            parse_manifest(content)
        else:
            unpack(inflated([content], "gzip" if name.endswith(".gz") else "", limits), layer, limits=limits)

    if reason:
        with pytest.raises(Malformed, match=re.escape(reason)):
            take()
    else:
        take()
    assert canary.exists()
    assert list(layer.parent.iterdir()) == [layer]


def test_absolute_names_are_names_in_the_layer(layer: Path, outside: Path) -> None:
    apply(layer, member(f"{outside}/file", b"x"))
    assert (layer / str(outside).lstrip("/") / "file").read_bytes() == b"x"


@pytest.mark.parametrize("target", ["/", "..", "../../..", "{out}", "/proc/self/root", "/proc/self/fd/3"])
def test_links_out_of_the_layer_lead_back_into_it(layer: Path, outside: Path, target: str) -> None:
    apply(layer, symlink("s", target.format(out=outside)), member("s/file", b"x"))
    assert sum(path.name == "file" and path.read_bytes() == b"x" for path in layer.rglob("*") if not path.is_symlink()) == 1


def test_a_file_over_a_link_replaces_the_link(layer: Path, outside: Path) -> None:
    apply(layer, symlink("s", f"{outside}/file"), member("s", b"x"))
    assert not (layer / "s").is_symlink()
    assert (layer / "s").read_bytes() == b"x"


def test_a_directory_over_a_link_replaces_the_link(layer: Path, outside: Path) -> None:
    apply(layer, symlink("s", str(outside)), directory("s", mode=0o700), member("s/file", b"x"))
    assert stat.S_IMODE((layer / "s").lstat().st_mode) == 0o700
    assert (layer / "s/file").read_bytes() == b"x"


def test_a_link_over_a_directory_takes_the_directory_away(layer: Path, outside: Path) -> None:
    made = apply(layer, directory("d"), member("d/e/f", b"x"), symlink("d", str(outside)))
    assert (layer / "d").readlink() == outside
    assert made.implied == ((),)


def test_what_is_known_of_directories_goes_with_them(layer: Path) -> None:
    made = apply(layer, member("a/b/c/d/e"), directory("a/b/x", mtime=7), member("a/b"), directory("a/b"), member("a/b/c/e"))
    assert made.implied == ((), (b"a",), (b"a", b"b", b"c"))
    assert names(layer) == {"a", "a/b", "a/b/c", "a/b/c/e"}


def test_hard_links_to_links_link_the_link(layer: Path, outside: Path) -> None:
    apply(layer, symlink("s", f"{outside}/file"), hard_link("x", "s"), member("x", b"new"))
    assert (layer / "x").read_bytes() == b"new"
    assert (layer / "s").readlink() == outside / "file"


def test_a_later_entry_of_one_name_wins(layer: Path) -> None:
    apply(layer, member("x", b"first", mode=0o600), hard_link("y", "x"), member("x", b"second", mode=0o640))
    assert ((layer / "x").read_bytes(), (layer / "y").read_bytes()) == (b"second", b"first")


def test_orders_to_overlayfs_are_dropped(layer: Path) -> None:
    orders = {f"SCHILY.xattr.{name}": "y" for name in ("trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.opaque")}
    apply(layer, directory("d", pax_headers={**orders, "SCHILY.xattr.trusted.other": "1"}))
    assert os.listxattr(layer / "d") == ["trusted.other"]


def test_common_devices_arrive(layer: Path) -> None:
    apply(layer, member("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666), member("f", kind=tarfile.FIFOTYPE, mode=0o620))
    assert (layer / "null").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO((layer / "f").stat().st_mode)


def test_bombs_are_cut_short(layer: Path) -> None:
    small = Limits(entries=10, layer_bytes=1000)
    with pytest.raises(Malformed, match="more than 10 entries"):
        apply(layer, *(member(f"f{number}") for number in range(11)), limits=small)
    with pytest.raises(Malformed, match="is larger than 1000 bytes"):
        apply(layer, member("big", bytes(1001)), limits=small)


def test_a_huge_extended_header_costs_no_memory(layer: Path) -> None:
    def endless() -> Iterator[bytes]:
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.XHDTYPE, 100 << 20
        yield info.tobuf(tarfile.USTAR_FORMAT)
        raise AssertionError("its data was asked for")

    with pytest.raises(Malformed, match="extended headers of"):
        unpack(endless(), layer, limits=Limits())


@pytest.mark.parametrize("cut", [100, 512, 700, 1024, 1500])
def test_a_cut_archive_is_refused_or_ends_between_entries(layer: Path, cut: int) -> None:
    whole = archive(member("a", b"1" * 400), member("b", b"2" * 400))
    if cut % 1024 == 0:
        unpack([whole[:cut]], layer, limits=Limits())
        assert names(layer) == {"a"}
    else:
        with pytest.raises(Malformed, match="ends in the middle"):
            unpack([whole[:cut]], layer, limits=Limits())


@pytest.mark.parametrize("at", range(0, 512, 7))
def test_a_damaged_header_is_refused(layer: Path, at: int) -> None:
    whole = bytearray(archive(member("a", b"1"), form=tarfile.USTAR_FORMAT))
    whole[at] ^= 0x11
    with pytest.raises(Malformed):
        unpack([bytes(whole)], layer, limits=Limits())


@pytest.mark.parametrize("form", [["gnu"], ["posix", "--sparse-version=0.0"], ["posix", "--sparse-version=0.1"], ["posix"]])
def test_sparse_files_keep_their_holes(layer: Path, tmp_path: Path, form: list[str]) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for number in range(30):
            file.seek(number << 20)
            file.write(b"data")
        file.truncate(31 << 20)
    packed = subprocess.run(
        ["tar", "-C", tmp_path, "--sparse", "-cf", "-", f"--format={form[0]}", *form[1:], "sparse"], check=True, capture_output=True
    )
    unpack([packed.stdout], layer, limits=Limits())
    assert (layer / "sparse").read_bytes() == path.read_bytes()
    assert (layer / "sparse").stat().st_blocks * 512 < 1 << 20
