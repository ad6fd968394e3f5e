"""Images whose parts do not fit each other: each lie is refused before anything of it can be used."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.images import OCI, Built, archive, descriptor, image, member
from zlayer_driver.errors import PullFailed
from zlayer_driver.image.store import ImageStore
from zlayer_driver.image.values import Limits

pytestmark = pytest.mark.needs("root", "linux")

LAYERS = [archive(member("a", b"a")), archive(member("b", b"b"))]
Document = dict[str, Any]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    opened = ImageStore(tmp_path / "images", limits=Limits(layer_bytes=1 << 20))
    yield opened
    await opened.close()


def told(built: Built, change: Callable[[Document, Document], None]) -> Built:
    """The image with its manifest and config changed, and every digest made right again."""
    manifest = json.loads(built.manifest)
    config = json.loads(built.blobs[manifest["config"]["digest"]])
    change(manifest, config)
    raw = json.dumps(config).encode()
    manifest["config"] = descriptor(raw, f"{OCI}.config.v1+json")
    return replace(built, manifest=json.dumps(manifest).encode(), blobs={**built.blobs, manifest["config"]["digest"]: raw})


def wrong_diff_id(_: Document, config: Document) -> None:
    config["rootfs"]["diff_ids"][0] = f"sha256:{'0' * 64}"


def swapped_diff_ids(_: Document, config: Document) -> None:
    config["rootfs"]["diff_ids"].reverse()


def a_diff_id_too_few(_: Document, config: Document) -> None:
    config["rootfs"]["diff_ids"].pop()


def a_layer_too_few(manifest: Document, _: Document) -> None:
    manifest["layers"].pop()


def larger_layer(manifest: Document, _: Document) -> None:
    manifest["layers"][0]["size"] += 1


def smaller_layer(manifest: Document, _: Document) -> None:
    manifest["layers"][0]["size"] -= 1


def other_compression(manifest: Document, _: Document) -> None:
    manifest["layers"][0]["mediaType"] = f"{OCI}.layer.v1.tar+zstd"


def no_compression(manifest: Document, _: Document) -> None:
    manifest["layers"][0]["mediaType"] = f"{OCI}.layer.v1.tar"


def unknown_media_type(manifest: Document, _: Document) -> None:
    manifest["layers"][0]["mediaType"] = "text/plain"


def other_architecture(_: Document, config: Document) -> None:
    config["architecture"] = "s390x"


LIES = [
    (wrong_diff_id, "does not unpack to diff_id"),
    (swapped_diff_ids, "does not unpack to diff_id"),
    (a_diff_id_too_few, "1 diff_ids for the manifest's 2 layers"),
    (a_layer_too_few, "2 diff_ids for the manifest's 1 layers"),
    (larger_layer, "has less than its"),
    (smaller_layer, "has more than its"),
    (other_compression, "no zstd stream"),
    (no_compression, "damaged header|no octal number|does not unpack"),
    (unknown_media_type, "unknown media type"),
    (other_architecture, "is for linux/s390x"),
]


@pytest.mark.parametrize(("lie", "reason"), LIES, ids=[lie.__name__ for lie, _ in LIES])
async def test_refused(store: ImageStore, tmp_path: Path, lie: Callable[[Document, Document], None], reason: str) -> None:
    layout = told(image(LAYERS), lie).layout(tmp_path / "app")
    with pytest.raises(PullFailed, match=reason):
        await store.import_archive(f"oci:{layout}")
    assert store.list() == []
    assert list((tmp_path / "images/t").iterdir()) == []


async def test_blobs_with_other_content_are_refused(store: ImageStore, tmp_path: Path) -> None:
    built = image(LAYERS)
    for number, name in enumerate(built.blobs):
        changed = built.blobs[name][:-1] + bytes([built.blobs[name][-1] ^ 1])
        layout = replace(built, blobs={**built.blobs, name: changed}).layout(tmp_path / f"app{number}")
        with pytest.raises(PullFailed, match=r"another (size or )?digest|cut short|no gzip stream"):
            await store.import_archive(f"oci:{layout}")
        assert store.list() == []
        await store.prune()


async def test_a_layer_that_unpacks_beyond_the_limit_is_refused(store: ImageStore, tmp_path: Path) -> None:
    layout = image([archive(*(member(f"zeros{number}", bytes(100_000)) for number in range(20)))]).layout(tmp_path / "app")
    with pytest.raises(PullFailed, match="unpacks to more than 1048576 bytes"):
        await store.import_archive(f"oci:{layout}")
