"""What a node tells of itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from zlayer_driver.backends.fake import FakeBackend
from zlayer_driver.backends.stored_images import StoredImages
from zlayer_driver.composite import Composite
from zlayer_driver.config import PluginConfig
from zlayer_driver.errors import CacheBusy
from zlayer_driver.model import IMAGES_ATTRIBUTE, OS, Fingerprint, Health, ImageFacts, PullPolicy, Target
from zlayer_driver.node import Node
from zlayer_driver.nomad.fleet import parse_node


class IllBackend(FakeBackend):
    async def probe(self) -> Fingerprint:
        raise PermissionError(13, "Permission denied", "/dev/kvm")

    async def sweep(self, *, orphans_after_s: float | None = None) -> None:
        raise CacheBusy("/cache", f"somebody writes to it for {orphans_after_s} s")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(PluginConfig(state_dir=str(tmp_path)))
    node.backends = {Target.PRIMARY: FakeBackend(), Target.DELEGATE: IllBackend()}
    node.composite = Composite(node.backends, native_os=OS.LINUX, facts=lambda _image: ImageFacts())
    yield node
    await node.close()


async def test_a_backend_that_cannot_be_probed_is_unhealthy(node: Node) -> None:
    found = (await node.probe())[Target.DELEGATE]
    assert (await node.fingerprint()).health is Health.HEALTHY
    assert (found.health, found.description) == (Health.UNHEALTHY, "cannot be probed: /dev/kvm: Permission denied")


async def test_a_backend_that_cannot_be_swept_does_not_keep_the_node_from_work(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    await node.sweep(orphans_after_s=5)
    assert "on target delegate cannot be looked for: cannot read blob cache '/cache'" in caplog.text


async def test_a_store_that_cannot_be_made_does_not_silence_the_node(node: Node, tmp_path: Path) -> None:
    (tmp_path / "images").touch()
    node.backends[Target.PRIMARY].list_images = StoredImages(node.store).list_images  # type: ignore[attr-defined]  # the fake has it
    told = await node.fingerprint()
    assert (told.health, told.attributes[IMAGES_ATTRIBUTE]) == (Health.HEALTHY, "")


async def test_images_are_told_as_placement_reads_them(node: Node) -> None:
    for name in ("b", "a"):
        await node.composite.pull(f"fake.test/{name}:1", policy=PullPolicy.IF_NOT_PRESENT, auth=None, report=None)
    told = (await node.fingerprint()).attributes
    assert told[IMAGES_ATTRIBUTE] == "fake.test/a:1,fake.test/b:1"
    assert parse_node({"ID": "a", "Attributes": told}).images == {"fake.test/a:1", "fake.test/b:1"}


async def test_of_many_images_whole_names_are_told(node: Node) -> None:
    for number in range(1000):
        await node.composite.pull(f"fake.test/{number:030}:1", policy=PullPolicy.IF_NOT_PRESENT, auth=None, report=None)
    told = str((await node.fingerprint()).attributes[IMAGES_ATTRIBUTE])
    assert 16_000 < len(told) <= 16 << 10
    assert {len(name) for name in told.split(",")} == {len("fake.test/:1") + 30}
