"""Stacks of layers as a container sees them: through real overlay mounts."""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.doubles.images import archive, directory, hard_link, image, member, symlink
from zlayer_driver.errors import PullFailed
from zlayer_driver.host import mounts
from zlayer_driver.image.layers import LayerStore
from zlayer_driver.image.store import ImageStore
from zlayer_driver.image.values import Image, Limits

pytestmark = pytest.mark.needs("root", "linux", "mount")

Member = tuple[tarfile.TarInfo, bytes]
OPAQUE = ".wh..wh..opq"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    opened = ImageStore(tmp_path / "images")
    yield opened
    await opened.close()


async def stack(store: ImageStore, tmp_path: Path, *layers: list[Member], name: str = "app") -> Image:
    layout = image([archive(*members) for members in layers]).layout(tmp_path / name)
    return await store.import_archive(f"oci:{layout}")


@contextmanager
def mounted(image: Image, tmp_path: Path) -> Iterator[Path]:
    at = tmp_path / "merged"
    for name in ("merged", "upper", "work"):
        (tmp_path / name).mkdir(exist_ok=True)
    options = f"lowerdir={':'.join(str(layer) for layer in reversed(image.layers))},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def attributes(path: Path) -> tuple[int, int, int]:
    info = path.stat()
    return stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid


LOWER = [directory("d"), member("d/a", b"a"), member("d/b", b"b"), member("f", b"f")]


@pytest.mark.parametrize(
    ("upper", "left"),
    [
        ([member("d/.wh.a")], {"d", "d/b", "f"}),
        ([member(".wh.d")], {"f"}),
        ([member(".wh.f"), member(".wh.none")], {"d", "d/a", "d/b"}),
        ([directory("d"), member(f"d/{OPAQUE}"), member("d/new")], {"d", "d/new", "f"}),
        ([directory("d"), member("d/new"), member(f"d/{OPAQUE}")], {"d", "d/new", "f"}),
        ([member(OPAQUE), member("new")], {"new"}),
        ([member(".wh.d"), member("d/new")], {"d", "d/new", "f"}),
        ([member("d/new"), member(".wh.d")], {"d", "d/new", "f"}),
        ([member(".wh.d"), directory("d"), member("d/new")], {"d", "d/new", "f"}),
        ([member(".wh.f"), member("f", b"new")], {"d", "d/a", "d/b", "f"}),
        ([member("f", b"new"), member(".wh.f")], {"d", "d/a", "d/b", "f"}),
        ([member("d", b"file"), directory("d")], {"d", "f"}),
        ([member("d", b"file"), member(".wh.f")], {"d"}),
        ([member(".wh..wh.plnk/1.2", b"x"), member(".wh..wh.aufs")], {"d", "d/a", "d/b", "f"}),
    ],
)
async def test_what_an_upper_layer_deletes(store: ImageStore, tmp_path: Path, upper: list[Member], left: set[str]) -> None:
    with mounted(await stack(store, tmp_path, LOWER, upper), tmp_path) as root:
        assert names(root) == left


async def test_an_unlisted_directory_keeps_what_it_was(store: ImageStore, tmp_path: Path) -> None:
    lower = [
        directory("d", mode=0o1750, uid=5, gid=6, mtime=1_000_000_000, pax_headers={"SCHILY.xattr.trusted.x": "1"}),
        directory("d/e", mode=0o711),
    ]
    pulled = await stack(store, tmp_path, lower, [member("x")], [member("d/e/new")])
    with mounted(pulled, tmp_path) as root:
        assert attributes(root / "d") == (0o1750, 5, 6)
        assert os.getxattr(root / "d", "trusted.x") == b"1"
        assert attributes(root / "d/e") == (0o711, 0, 0)
        assert (root / "d").stat().st_mtime == 1_000_000_000


async def test_an_unlisted_directory_differs_with_what_lies_below(store: ImageStore, tmp_path: Path) -> None:
    upper = [member("d/new")]
    first = await stack(store, tmp_path, [directory("d", mode=0o700)], upper, name="first")
    second = await stack(store, tmp_path, [directory("d", mode=0o711)], upper, name="second")
    assert [attributes(pulled.layers[1] / "d")[0] for pulled in (first, second)] == [0o700, 0o711]


async def test_an_unlisted_root_keeps_what_it_was(store: ImageStore, tmp_path: Path) -> None:
    first = await stack(store, tmp_path, [directory("./", mode=0o700, uid=7)], [member("x")], name="first")
    second = await stack(store, tmp_path, [member("y")], [member("x")], name="second")
    assert [attributes(pulled.layers[-1]) for pulled in (first, second)] == [(0o700, 7, 0), (0o755, 0, 0)]


async def test_a_layer_may_occur_twice(store: ImageStore, tmp_path: Path) -> None:
    pulled = await stack(store, tmp_path, LOWER, [member("d/.wh.a"), member("f", b"other"), member("x")], LOWER, [], [])
    with mounted(pulled, tmp_path) as root:
        assert names(root) == {"d", "d/a", "d/b", "f", "x"}
        assert (root / "f").read_bytes() == b"f"


async def test_a_hard_link_is_to_the_file_of_the_layers_below_it(store: ImageStore, tmp_path: Path) -> None:
    upper = [directory("./"), hard_link("x", "f")]
    first = await stack(store, tmp_path, LOWER, upper, name="first")
    second = await stack(store, tmp_path, [member("f", b"another")], upper, name="second")
    assert [(pulled.layers[1] / "x").read_bytes() for pulled in (first, second)] == [b"f", b"another"]


@pytest.mark.parametrize(
    "upper",
    [
        [hard_link("x", "none")],
        [hard_link("x", "d")],
        [hard_link("x", "link")],
        [member(".wh.f"), hard_link("x", "f")],
        [member(".wh.d"), hard_link("x", "d/a")],
        [directory("d"), member(f"d/{OPAQUE}"), hard_link("x", "d/a")],
        [member(OPAQUE), hard_link("x", "f")],
        [member("d", b"file"), directory("d"), hard_link("x", "d/a")],
    ],
)
async def test_what_is_hidden_or_no_file_cannot_be_linked_to(store: ImageStore, tmp_path: Path, upper: list[Member]) -> None:
    with pytest.raises(PullFailed, match=r"is a hard link to .*, which is no file"):
        await stack(store, tmp_path, [*LOWER, symlink("link", "/etc/passwd")], upper)


async def test_links_do_not_multiply_what_lies_below(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images", limits=Limits(ratio_free_bytes=5000))
    lower = [member(name, b"1" * 2000) for name in "abc"]
    with pytest.raises(PullFailed, match="links to more than 5000 bytes of the layers below"):
        await stack(store, tmp_path, lower, [hard_link(f"{name}2", name) for name in "abc"])
    await store.close()


async def test_layers_are_shared(store: ImageStore, tmp_path: Path) -> None:
    first = await stack(store, tmp_path, LOWER, [member("x")], name="first")
    second = await stack(store, tmp_path, LOWER, [member("y")], name="second")
    assert first.layers[0] == second.layers[0]
    await store.remove(first.reference)
    assert second.layers[0].exists()
    assert not first.layers[1].exists()
    assert store.get(second.reference) == second


async def test_mounted_layers_outlive_their_image(store: ImageStore, tmp_path: Path) -> None:
    pulled = await stack(store, tmp_path, LOWER)
    with mounted(pulled, tmp_path) as root:
        await store.remove(pulled.reference)
        assert (root / "d/a").read_bytes() == b"a"
    await store.prune()
    assert not pulled.layers[0].exists()


def overlay_mount(image: Image, at: Path) -> None:
    for name in ("upper", "work"):
        (at.parent / name).mkdir()
    mounts.overlay(at, lower=image.layers, upper=at.parent / "upper", work=at.parent / "work")


def mount_program(image: Image, at: Path) -> None:
    """As another tool would do it, by names of its own."""
    lower = ":".join(str(layer.parent / "../l" / layer.name) for layer in reversed(image.layers))
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower}:{at}", at], check=True)


@pytest.mark.parametrize("how", [overlay_mount, lambda image, at: mounts.overlay_read_only(at, image.layers), mount_program])
async def test_a_mount_keeps_the_layers_of_its_own_store_only(tmp_path: Path, how: Callable[[Image, Path], None]) -> None:
    stores = [ImageStore(tmp_path / name) for name in ("one", "two")]
    one, two = [await stack(each, tmp_path, LOWER, name=f"app{number}") for number, each in enumerate(stores)]
    assert one.layers[0].name == two.layers[0].name
    at = tmp_path / "merged"
    at.mkdir()
    how(one, at)
    try:
        for each, image_ in zip(stores, (one, two), strict=True):
            await each.remove(image_.reference)
            await each.close()
        assert (at / "d/a").read_bytes() == b"a"
        assert (one.layers[0].exists(), two.layers[0].exists()) == (True, False)
    finally:
        mounts.unmount(at)


async def test_nothing_is_collected_while_held(store: ImageStore, tmp_path: Path) -> None:
    pulled = await stack(store, tmp_path, LOWER)
    with store.hold():
        await store.remove(pulled.reference)
        assert pulled.layers[0].exists()
    await store.prune()
    assert not pulled.layers[0].exists()


async def test_prune_says_what_it_removed_and_leaves_the_young(store: ImageStore, tmp_path: Path) -> None:
    pulled = await stack(store, tmp_path, [member("big", b"x" * (1 << 20))])
    pulled.layers[0].rename(tmp_path / "images/l/orphan")
    assert (await store.prune(min_age_s=3600)).deleted == ()
    pruned = await store.prune()
    assert pruned.deleted == ("orphan",)
    assert 1 << 20 <= pruned.reclaimed_bytes < 2 << 20


def test_what_is_kept_while_others_sweep_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LayerStore(tmp_path / "images")
    store.open()
    making = store.making()
    made = making.__enter__()

    def after_its_maker(fd: int, how: int) -> None:
        made.rename(tmp_path / "images/l/kept")
        making.__exit__(None, None, None)
        monkeypatch.undo()
        fcntl.flock(fd, how)

    monkeypatch.setattr("fcntl.flock", after_its_maker)
    store.sweep()
    assert (tmp_path / "images/l/kept").is_dir()


async def test_an_image_may_have_two_names(store: ImageStore, tmp_path: Path) -> None:
    pulled = await stack(store, tmp_path, LOWER)
    tagged = await store.tag("localhost/app", "example.com/other:2")
    assert (tagged.reference, tagged.digest, tagged.layers) == ("example.com/other:2", pulled.digest, pulled.layers)
    await store.remove("localhost/app")
    assert store.get("example.com/other:2") == tagged


async def test_two_stores_on_one_directory(store: ImageStore, tmp_path: Path) -> None:
    other = ImageStore(tmp_path / "images")
    try:
        pulled = await asyncio.gather(stack(store, tmp_path, LOWER, name="one"), stack(other, tmp_path, LOWER, [member("x")], name="two"))
        assert pulled[0].layers[0] == pulled[1].layers[0]
        assert [record.reference for record in other.list()] == ["localhost/one:latest", "localhost/two:latest"]
    finally:
        await other.close()


async def test_a_list_is_read_again_once_something_changed(store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = ImageStore(tmp_path / "images")
    try:
        await stack(store, tmp_path, LOWER, name="one")
        for path in (tmp_path / "images").glob("[bl]*"):
            os.utime(path, (1, 1))  # as a while later
        listed = store.list()
        monkeypatch.setattr(store, "get", None)
        assert store.list() == listed != []
        monkeypatch.undo()
        await other.tag("localhost/one", "localhost/two")
        assert [record.reference for record in store.list()] == ["localhost/one:latest", "localhost/two:latest"]
    finally:
        await other.close()


async def test_a_record_without_its_layers_is_no_image(store: ImageStore, tmp_path: Path) -> None:
    pulled = await stack(store, tmp_path, LOWER)
    pulled.layers[0].rename(tmp_path / "elsewhere")
    assert store.list() == []
    assert (await stack(store, tmp_path, LOWER, name="again/app")).layers == pulled.layers
