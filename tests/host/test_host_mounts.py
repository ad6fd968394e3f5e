"""Overlay mounts as the machine's own kernel makes them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from zlayer_driver.host import mounts

pytestmark = pytest.mark.needs("linux", "root")


@pytest.fixture
def upper_layer(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Keyword arguments of `overlay`, apart from ``lower``; whatever was mounted is unmounted again."""
    made = {name: tmp_path / name for name in ("target", "upper", "work")}
    for path in made.values():
        path.mkdir()
    yield made
    mounts.unmount(made["target"])
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("name", ["plain", "co:lon", "com,ma", "back\\slash", "a b"])
def test_any_name_of_a_layer(tmp_path: Path, upper_layer: dict[str, Path], name: str) -> None:
    layers = [tmp_path / "layers" / name, tmp_path / "layers" / f"{name}2"]
    for number, layer in enumerate(layers):
        layer.mkdir(parents=True)
        (layer / "which").write_text(str(number))
    mounts.overlay(lower=layers, **upper_layer)
    assert (upper_layer["target"] / "which").read_text() == "1"
    (upper_layer["target"] / "new").touch()
    assert (upper_layer["upper"] / "new").exists()


def test_as_many_layers_as_images_have(tmp_path: Path, upper_layer: dict[str, Path]) -> None:
    layers = [tmp_path / "layers" / f"{number:026}" for number in range(128)]
    for layer in layers:
        layer.mkdir(parents=True)
        (layer / layer.name).touch()
    before = Path.cwd()
    mounts.overlay(lower=layers, **upper_layer)
    assert len(list(upper_layer["target"].iterdir())) == 128
    assert layers[0].name in Path("/proc/self/mountinfo").read_text()
    assert Path.cwd() == before


def test_more_layers_than_fit_are_told(tmp_path: Path, upper_layer: dict[str, Path]) -> None:
    layers = [tmp_path / f"{number:0200}" for number in range(30)]
    with pytest.raises(OSError, match="30 layers are more than one mount can name") as caught:
        mounts.overlay(lower=layers, **upper_layer)
    assert caught.value.errno == errno.E2BIG


def test_unmounting_what_is_not_mounted_is_fine(tmp_path: Path) -> None:
    mounts.unmount(tmp_path)
    mounts.unmount(tmp_path / "missing")


def test_a_mount_in_use_goes_too(tmp_path: Path, upper_layer: dict[str, Path]) -> None:
    (tmp_path / "layer").mkdir()
    mounts.overlay(lower=[tmp_path / "layer"], **upper_layer)
    fd = os.open(upper_layer["target"], os.O_RDONLY)
    mounts.unmount(upper_layer["target"])
    os.close(fd)
