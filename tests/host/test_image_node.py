"""What the operator's config says of images, as a node's pulls from a real registry obey it."""

from __future__ import annotations

import base64
import json
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import registry
from tests.doubles.images import archive, image, member
from tests.doubles.web import Call, serving
from zlayer_driver.config import PluginConfig, parse
from zlayer_driver.driver import Driver
from zlayer_driver.errors import ConfigError, PullFailed, Unsupported
from zlayer_driver.image.values import Limits
from zlayer_driver.model import PullPolicy, TaskRequest
from zlayer_driver.node import Node

pytestmark = pytest.mark.needs("root", "linux", "docker-registry")

SECRET = base64.b64encode(b"user:secret").decode()
DEVICE = member("disk", kind=tarfile.BLKTYPE, devmajor=8, devminor=0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.Registry]:
    with registry.running(tmp_path_factory.mktemp("registry")) as running:
        running.push(image([archive(member("a", b"1" * 3_000_000), member("b"))]), "app", "1")
        running.push(image([archive(DEVICE)]), "device", "1")
        yield running


@asynccontextmanager
async def node(tmp_path: Path, **keys: Any) -> AsyncIterator[Node]:
    made = Node(parse(PluginConfig, {"state_dir": str(tmp_path / "state"), **keys}, what="plugin config"))
    try:
        yield made
    finally:
        await made.close()


async def pull(made: Node, reference: str) -> None:
    await made.store.pull(reference, policy=PullPolicy.ALWAYS, auth=None)


def test_the_defaults_are_the_stores_own() -> None:
    config, limits = PluginConfig(), Limits()
    assert (config.image_max_layers, config.image_max_layer_entries) == (limits.layers, limits.entries)
    assert config.image_max_layer_mb << 20 == limits.layer_bytes


async def test_an_engine_does_not_run_what_a_task_brings(tmp_path: Path) -> None:
    driver = Driver()
    config = {"state_dir": str(tmp_path / "state"), "primary": "podman", "engine_socket": str(tmp_path / "none")}
    await driver.set_config(parse(PluginConfig, config, what="plugin config"), validate_only=False)
    image([archive(member("a"))]).layout(tmp_path / "alloc/web/local/app")
    request = TaskRequest(id="a/web/1", name="web", config={"image": "oci:local/app"}, alloc_dir=str(tmp_path / "alloc"))
    with pytest.raises(Unsupported, match=r"brings its image .*podman, which is to run it, keeps its images itself: push the image"):
        await driver.start_task(request)
    await driver.shutdown()


async def test_a_mirror_is_asked_first(server: registry.Registry, tmp_path: Path) -> None:
    async with node(tmp_path, registry_mirrors={"registry.invalid": server.host}) as made:
        await pull(made, "registry.invalid/app:1")
        assert made.store.get("registry.invalid/app:1").layers


async def test_the_auth_file_is_asked(tmp_path: Path) -> None:
    async def locked(call: Call) -> None:
        if call.headers.get("authorization") == f"Basic {SECRET}":
            await call.answer(404)
        else:
            await call.answer(401, www_authenticate="Basic realm=x")

    async with serving(locked) as web:
        file = tmp_path / "config.json"
        file.write_text(json.dumps({"auths": {web.host: {"auth": SECRET}}}))
        async with node(tmp_path, registry_auth_file=str(file)) as made:
            with pytest.raises(PullFailed, match="the registry does not have it"):
                await pull(made, f"{web.host}/app:1")


async def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    async with node(tmp_path, registry_ca_file="/none.pem") as made:
        with pytest.raises(ConfigError, match=r"certificates in '/none.pem'"):
            await pull(made, "registry.invalid/app:1")


@pytest.mark.parametrize("mirrors", [{"docker.io": ""}, {"docker.io": "a,"}, {"docker.io": "https://a"}])
def test_mirrors_are_hosts(mirrors: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"registry_mirrors: .* is no registry: name it as host"):
        parse(PluginConfig, {"registry_mirrors": mirrors}, what="plugin config")


async def test_sizes_are_limited(server: registry.Registry, tmp_path: Path) -> None:
    async with node(tmp_path, image_max_layer_mb=2) as made:
        with pytest.raises(PullFailed, match="than 2097152 bytes"):
            await pull(made, f"{server.host}/app:1")
    async with node(tmp_path, image_max_layer_entries=1) as made:
        with pytest.raises(PullFailed, match="more than 1 entries"):
            await pull(made, f"{server.host}/app:1")


async def test_devices_are_for_whom_the_operator_trusts(server: registry.Registry, tmp_path: Path) -> None:
    async with node(tmp_path) as made:
        with pytest.raises(PullFailed, match="device 8:0, which images may not bring"):
            await pull(made, f"{server.host}/device:1")
    async with node(tmp_path, allow_image_devices=True) as made:
        await pull(made, f"{server.host}/device:1")
