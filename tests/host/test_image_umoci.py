"""Stacks as overlayfs shows them, against what umoci unpacks from the same image: every name, mode, owner, time, link, xattr and byte."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.doubles.images import archive, directory, hard_link, image, member, symlink
from tests.host.test_image_layers import mounted
from zlayer_driver.image.store import ImageStore

pytestmark = [pytest.mark.needs("root", "linux", "mount", "umoci"), pytest.mark.timeout(180)]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    opened = ImageStore(tmp_path / "images")
    yield opened
    await opened.close()


def shape(root: Path) -> dict[str, tuple[object, ...]]:
    """What there is at each name. The inodes of hard links are told apart by the first name of each."""
    first: dict[tuple[int, int], str] = {}
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        info = path.lstat()
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False) if "overlay" not in key
        }
        same = first.setdefault((info.st_dev, info.st_ino), name) if info.st_nlink > 1 and stat.S_ISREG(info.st_mode) else name
        content: object = None
        if stat.S_ISREG(info.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(info.st_mode):
            content = os.fspath(path.readlink())
        found[name] = (oct(info.st_mode), info.st_uid, info.st_gid, info.st_rdev, info.st_mtime_ns, xattrs, same, content)
    return found


def packed(*argv: str | Path) -> bytes:
    """A layer that GNU tar makes."""
    tar = ["tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--format=posix", "-cf", "-", *argv]
    return subprocess.run(tar, check=True, capture_output=True).stdout


def of_this_machine(parent: str, name: str) -> Callable[[Path], list[bytes]]:
    return lambda _: [packed("-C", parent, name)]


def busybox(work: Path) -> list[bytes]:
    (work / "b/bin").mkdir(parents=True)
    subprocess.run(["cp", "/bin/busybox", work / "b/bin/busybox"], check=True)
    subprocess.run([work / "b/bin/busybox", "--install", "-s", work / "b/bin"], check=True)
    return [packed("-C", work / "b", ".")]


def odd_things(_: Path) -> list[bytes]:
    caps = bytes.fromhex("0100000200200000000000000000000000000000")
    return [
        archive(
            directory("d", mode=0o1777, mtime=5),
            member("d/ping", b"x", mode=0o4711, uid=7, pax_headers={"SCHILY.xattr.security.capability": caps.decode("latin-1")}),
            member("d/time", b"x", mtime=1_234_567_890.123_456_789),
            member("d/old", b"x", mtime=-1_000_000),
            symlink("d/dangling", "/none/such", uid=3, gid=4, mtime=77),
            hard_link("d/again", "d/ping"),
            member("d/fifo", kind=tarfile.FIFOTYPE, mode=0o640),
            member("d/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
            member("d/" + "n" * 200, b"long"),
            member("d/ü\udcff", b"odd"),
            directory("d/shut", mode=0),
            member("d/shut/in", b"x", mode=0),
            member("empty"),
            directory("group", mode=0o2755, gid=7),
            member("group/small", b"x"),
            member("group/large", b"x" * 100_000),
        ),
        archive(
            directory("d", mode=0o755, mtime=9), member("d/.wh.old"), member("d/time", b"new", mtime=8), symlink("d/empty", "../empty")
        ),
    ]


def deletions(_: Path) -> list[bytes]:
    return [
        archive(directory("a"), directory("a/b"), member("a/b/c", b"1"), member("f", b"1"), directory("g"), member("g/h", b"1")),
        archive(directory("a"), directory("a/b"), member("a/b/.wh..wh..opq"), member("a/b/new", b"2"), member(".wh.f"), member(".wh.g")),
        archive(directory("g", mode=0o700), member("f", b"3"), directory("a"), member("a/.wh.b")),
    ]


def links_below(_: Path) -> list[bytes]:
    """Upper layers that reach directories through links of lower ones, without listing them."""
    return [
        archive(directory("usr"), directory("usr/lib", mode=0o711), member("usr/lib/old"), symlink("lib", "usr/lib"), symlink("l", "/lib")),
        archive(
            member("lib/new", b"1", mtime=3),
            member("l/.wh.old"),
            member("l/deep/er", b"2"),
            directory("l/deep"),
            directory("usr/lib", mtime=4),
        ),
    ]


def hard_links_below(_: Path) -> list[bytes]:
    """Hard links to files that only lower layers have, also through a link. A file has one name there: overlayfs would part several."""
    labelled = {"SCHILY.xattr.user.label": "kept"}
    return [
        archive(
            directory("d", mode=0o710, uid=3, mtime=4),
            member("d/f", b"content", mode=0o4640, uid=5, gid=6, mtime=7, pax_headers=labelled),
            member("h", b"other", mtime=9),
            symlink("l", "d"),
        ),
        archive(directory("d", mode=0o711, mtime=8), hard_link("d/again", "d/f"), directory("e"), hard_link("e/through", "l/f")),
        archive(hard_link("bare", "h"), member("d/.wh.again")),
    ]


ROOTS: dict[str, Callable[[Path], list[bytes]]] = {
    "busybox": busybox,
    "odd things": odd_things,
    "deletions": deletions,
    "links below": links_below,
    "hard links below": hard_links_below,
    "etc": of_this_machine("/", "etc"),
    "programs": of_this_machine("/usr", "sbin"),
    "perl": of_this_machine("/usr/share", "perl5"),
    # Whole root file systems, such as debootstrap makes them, take too long to make for each run: the environment may name some.
    **{root: of_this_machine(root, ".") for root in filter(None, os.environ.get("ZLAYER_TEST_ROOTS", "").split(":"))},
}


@pytest.mark.parametrize("what", ROOTS)
async def test_same_tree(store: ImageStore, tmp_path: Path, what: str) -> None:
    layout = image(ROOTS[what](tmp_path)).layout(tmp_path / "app", "x")
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:x", tmp_path / "bundle"], check=True, capture_output=True)  # noqa: ASYNC221  # nothing else runs on this loop
    with mounted(await store.import_archive(f"oci:{layout}:x"), tmp_path) as root:
        ours, theirs = shape(root), shape(tmp_path / "bundle/rootfs")
    assert ours.keys() == theirs.keys()
    assert {name: (mine, theirs[name]) for name, mine in ours.items() if mine != theirs[name]} == {}
