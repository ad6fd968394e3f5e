"""The commands on images, as a person meets them: real layouts, real mounts."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.doubles.images import archive, directory, image, member
from zlayer_driver.cli.commands import cli
from zlayer_driver.config import PluginConfig, parse
from zlayer_driver.driver import Driver
from zlayer_driver.host import mounts
from zlayer_driver.node import Node

pytestmark = pytest.mark.needs("root", "linux")

BASE = archive(directory("d", mode=0o750), member("d/old", b"old"), member("f", b"f"))
TOP = archive(directory("d", mode=0o700), member("d/.wh.old"), member("d/new", b"new"))
Invoke = Callable[..., Any]


@pytest.fixture
def layouts(tmp_path: Path) -> dict[str, str]:
    """``one`` is a base of ``two``."""
    return {name: f"oci:{image(layers).layout(tmp_path / name)}" for name, layers in {"one": [BASE], "two": [BASE, TOP]}.items()}


@pytest.fixture
def invoke(tmp_path: Path) -> Invoke:
    def run(*argv: str | Path, code: int = 0) -> Any:
        result = CliRunner().invoke(cli, ["--state-dir", str(tmp_path / "state"), *map(str, argv), "--json"])
        assert result.exit_code == code, (result.stdout, result.stderr)
        return json.loads(result.stdout)

    return run


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory to mount at; nothing may be mounted there at the end."""
    yield tmp_path / "a place"
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text().replace("\\040", " ")


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def references(invoke: Invoke) -> list[str]:
    return [row["image"] for row in invoke("images")]


def test_from_a_layout_by_its_name_or_another(invoke: Invoke, layouts: dict[str, str]) -> None:
    assert invoke("pull", layouts["one"])["image"] == "localhost/one:latest"
    assert invoke("pull", layouts["two"], "--as", "app:2") == {
        "image": "docker.io/library/app:2",
        "digest": invoke("images")[0]["digest"],
        "size_bytes": invoke("images")[0]["size_bytes"],
        "layers": 2,
    }
    assert references(invoke) == ["docker.io/library/app:2", "localhost/one:latest"]
    assert "give a reference" not in invoke("pull", "example.org/x", "--as", "y", code=1)["error"]["message"]


def test_tag_and_rmi(invoke: Invoke, layouts: dict[str, str]) -> None:
    invoke("pull", layouts["one"])
    assert invoke("tag", "localhost/one", "app")["image"] == "docker.io/library/app:latest"
    assert invoke("rmi", "localhost/one") == [{"removed": "localhost/one:latest"}]
    assert references(invoke) == ["docker.io/library/app:latest"]
    assert invoke("rmi", "localhost/one", code=1)["error"]["kind"] == "NotFound"


def test_prune_takes_what_is_not_mounted(invoke: Invoke, layouts: dict[str, str], place: Path) -> None:
    for layout in layouts.values():
        invoke("pull", layout)
    invoke("mount", "localhost/one", place)
    assert invoke("prune", "--idle", "1000")["removed"] == []
    pruned = invoke("prune")
    assert pruned["removed"] == ["localhost/two:latest"]
    assert pruned["reclaimed_bytes"] > 0
    assert files(place) == {"d", "d/old", "f"}
    invoke("umount", place)
    assert invoke("prune")["removed"] == ["localhost/one:latest"]


async def test_prune_leaves_what_the_agents_config_keeps(invoke: Invoke, layouts: dict[str, str], tmp_path: Path) -> None:
    """The command line has no config here; what it may not remove it finds in the state directory."""
    driver = Driver()
    await driver.set_config(
        parse(PluginConfig, {"state_dir": str(tmp_path / "state"), "image_gc_keep": ["localhost/two"]}, what=""), validate_only=False
    )
    for layout in layouts.values():
        await driver.node.store.import_archive(layout)
    told = driver.fingerprints()
    await anext(told)
    await driver.shutdown()
    assert await anext(told, None) is None
    assert (await asyncio.to_thread(invoke, "prune"))["removed"] == ["localhost/one:latest"]


@pytest.mark.parametrize(("name", "shown"), [("one", {"d", "d/old", "f"}), ("two", {"d", "d/new", "f"})])
def test_mount_shows_an_image_until_umount(invoke: Invoke, layouts: dict[str, str], place: Path, name: str, shown: set[str]) -> None:
    invoke("pull", layouts[name])
    for _ in range(2):
        assert invoke("mount", f"localhost/{name}", place)["mounted"] == str(place)
        assert files(place) == shown
    with pytest.raises(OSError, match="Read-only"):
        (place / "f").write_text("changed")
    for _ in range(2):
        invoke("umount", place)
        assert files(place) == set()


def test_a_place_in_use_is_refused(invoke: Invoke, layouts: dict[str, str], place: Path, tmp_path: Path) -> None:
    for layout in layouts.values():
        invoke("pull", layout)
    invoke("mount", "localhost/one", place)
    assert "is in use" in invoke("mount", "localhost/two", place, code=1)["error"]["message"]
    invoke("umount", place)
    assert "is in use" in invoke("mount", "localhost/one", tmp_path, code=1)["error"]["message"]


def test_what_another_state_directory_shows_is_no_image_of_this(
    invoke: Invoke, layouts: dict[str, str], place: Path, tmp_path: Path
) -> None:
    invoke("pull", layouts["one"])
    invoke("--state-dir", tmp_path / "other", "pull", layouts["one"])
    invoke("--state-dir", tmp_path / "other", "mount", "localhost/one", place)
    assert "no image of this" in invoke("umount", place, code=1)["error"]["message"]
    assert "is in use" in invoke("mount", "localhost/one", place, code=1)["error"]["message"]
    invoke("--state-dir", tmp_path / "other", "umount", place)


@pytest.mark.needs("mount")
def test_other_mounts_are_left_alone(invoke: Invoke, place: Path) -> None:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    try:
        assert "no image" in invoke("umount", place, code=1)["error"]["message"]
        assert place.is_mount()
    finally:
        mounts.unmount(place)


async def test_images_that_idle_are_collected_but_for_those_to_keep(invoke: Invoke, layouts: dict[str, str], tmp_path: Path) -> None:
    config = parse(PluginConfig, {"state_dir": str(tmp_path / "state"), "image_gc_keep": ["localhost/two"]}, what="plugin config")
    node = Node(config)
    for layout in layouts.values():
        await node.store.import_archive(layout)
    await node.store.tag("localhost/one", "localhost/fresh")
    with sqlite3.connect(node.store.cache_path) as cache:
        cache.execute("UPDATE blobs SET last_accessed = last_accessed - 100 WHERE digest NOT LIKE '%fresh%'")
    cache.close()
    assert (await node.store.remove_unused(idle_s=50, keep=config.image_gc_keep)).deleted == ("localhost/one:latest",)
    await node.close()


async def test_a_node_collects_by_itself(layouts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(parse(PluginConfig, {"state_dir": str(tmp_path / "state"), "image_gc_delay": "1ms"}, what="plugin config"))
    await node.store.import_archive(layouts["one"])
    told = asyncio.Event()
    handler = logging.Handler()
    handler.emit = lambda record: told.set()  # type: ignore[method-assign] # as the logging cookbook has it
    log = logging.getLogger("zlayer_driver.node")
    log.addHandler(handler)
    monkeypatch.setattr(log, "level", logging.INFO)
    async with asyncio.timeout(30):
        await node.sweep()
        await told.wait()
    log.removeHandler(handler)
    assert node.store.list() == []
    await node.close()
