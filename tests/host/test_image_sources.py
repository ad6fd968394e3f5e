"""Images from directories and files, those that skopeo writes included."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from tests.doubles.images import Built, archive, digest, directory, image, index, member
from tests.host import engine_lab
from zlayer_driver.errors import ConfigError, NotFound, PullFailed
from zlayer_driver.image.files import TarFile, open_regular
from zlayer_driver.image.sources import DockerArchive
from zlayer_driver.image.store import ImageStore
from zlayer_driver.image.values import Limits, Malformed

pytestmark = pytest.mark.needs("root", "linux")

LAYERS = [archive(directory("etc"), member("etc/a", b"a")), archive(directory("etc"), member("etc/b", b"b"))]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    opened = ImageStore(tmp_path / "images")
    yield opened
    await opened.close()


def docker_archive(path: Path, built: Built, *tags: str) -> Path:
    """What ``docker save`` writes: config, layers and ``manifest.json``; the second layer as a link to a file elsewhere."""
    manifest = json.loads(built.manifest)
    blobs = [built.blobs[layer["digest"]] for layer in manifest["layers"]]
    config = built.blobs[manifest["config"]["digest"]]
    names = [f"{number}/layer.tar" for number in range(len(blobs))]
    entry = {"Config": "config.json", "RepoTags": list(tags), "Layers": names}
    members = [member("config.json", config), *(member(name, blob) for name, blob in zip(names, blobs, strict=True))]
    path.write_bytes(archive(*members, member("manifest.json", json.dumps([entry]).encode())))
    return path


async def test_a_layout_is_imported_under_its_own_name(store: ImageStore, tmp_path: Path) -> None:
    built = image(LAYERS)
    imported = await store.import_archive(f"oci:{built.layout(tmp_path / 'app', 'v1')}:v1")
    assert imported.reference == "localhost/app:v1"
    assert [path.name for layer in imported.layers for path in (layer / "etc").iterdir()] == ["a", "b"]
    assert imported.digest == built.digest
    assert store.get("localhost/app:v1") == imported


async def test_a_layout_with_one_image_needs_no_tag(store: ImageStore, tmp_path: Path) -> None:
    imported = await store.import_archive(f"oci:{image(LAYERS).layout(tmp_path / 'app', 'v1')}", "example.com/x:2")
    assert imported.reference == "example.com/x:2"


async def test_an_index_in_a_layout_is_followed(store: ImageStore, tmp_path: Path) -> None:
    wanted = image(LAYERS)
    built = index(
        (image([], os="windows"), "windows", "amd64"), (wanted, "linux", json.loads(next(iter(wanted.blobs.values())))["architecture"])
    )
    assert (await store.import_archive(f"oci:{built.layout(tmp_path / 'app')}")).digest == wanted.digest


@pytest.mark.parametrize("packed", [False, True])
async def test_an_archive_of_docker_save(store: ImageStore, tmp_path: Path, packed: bool) -> None:
    path = docker_archive(tmp_path / "saved.tar", image(LAYERS, how=""), "example.com/app:1")
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes(), 1))
    imported = await store.import_archive(f"docker-archive:{path}")
    assert imported.reference == "example.com/app:1"
    assert (imported.layers[1] / "etc/b").read_bytes() == b"b"


async def test_compressed_layers_in_a_docker_archive(store: ImageStore, tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "saved.tar", image(LAYERS, how="gzip"), "example.com/app:1")
    assert len((await store.import_archive(f"docker-archive:{path}:example.com/app:1")).layers) == 2


async def test_a_root_file_system(store: ImageStore, tmp_path: Path) -> None:
    path = tmp_path / "rootfs.tar.gz"
    path.write_bytes(gzip.compress(LAYERS[0]))
    imported = await store.import_archive(f"tarball:{path}")
    assert imported.reference == "localhost/rootfs:latest"
    assert (imported.layers[0] / "etc/a").read_bytes() == b"a"
    assert imported.config.diff_ids == (digest(LAYERS[0]),)


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive"])
async def test_what_skopeo_writes(store: ImageStore, tmp_path: Path, kind: str) -> None:
    layout = image(LAYERS).layout(tmp_path / "app", "v1")
    target = f"{kind}:{tmp_path / 'copy'}:example.com/app:v1"
    copy = ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}:v1", target]
    await asyncio.to_thread(subprocess.run, copy, check=True)
    imported = await store.import_archive(target, "example.com/app:v1")
    assert [(layer / "etc" / name).read_text() for layer, name in zip(imported.layers, "ab", strict=True)] == ["a", "b"]


@pytest.fixture(scope="module")
def podman() -> Iterator[str]:
    with engine_lab.podman() as socket:
        yield socket


@engine_lab.ONE_AT_A_TIME
@pytest.mark.needs(*engine_lab.PODMAN_NEEDS)
@pytest.mark.parametrize("kind", ["podman", "docker-daemon"])
async def test_an_image_out_of_an_engine(
    store: ImageStore, tmp_path: Path, podman: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv({"podman": "CONTAINER_HOST", "docker-daemon": "DOCKER_HOST"}[kind], f"unix://{podman}")
    saved = docker_archive(tmp_path / "saved.tar", image(LAYERS, how=""), "example.com/app:1")
    async with httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=podman), base_url="http://engine", timeout=30) as http:
        (await http.post("/images/load", content=saved.read_bytes())).raise_for_status()
        image_id = (await http.get("/images/example.com/app:1/json")).raise_for_status().json()["Id"]
    imported = await store.import_archive(f"{kind}:example.com/app:1")
    assert imported.reference == "example.com/app:1"
    assert [(layer / "etc" / name).read_text() for layer, name in zip(imported.layers, "ab", strict=True)] == ["a", "b"]
    by_id = f"{kind}:{image_id.removeprefix('sha256:')}"
    assert (await store.import_archive(by_id, "localhost/x")).layers == imported.layers
    with pytest.raises(ConfigError, match="does not name its image"):
        await store.import_archive(by_id)
    with pytest.raises(PullFailed, match="the engine answers 404"):
        await store.import_archive(f"{kind}:example.com/none")


async def test_an_engine_that_is_not_there_is_named(store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(PullFailed, match=r"none.sock: .*is the engine running\?.* CONTAINER_HOST=unix://PATH"):
        await store.import_archive("podman:alpine")
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    with pytest.raises(ConfigError, match="only of an engine on this machine"):
        await store.import_archive("docker-daemon:alpine")


async def test_faults_are_named(store: ImageStore, tmp_path: Path) -> None:
    layout = image(LAYERS).layout(tmp_path / "app", "v1")
    with pytest.raises(PullFailed, match="no image 'v2', only: v1"):
        await store.import_archive(f"oci:{layout}:v2")
    with pytest.raises(PullFailed, match="No such file"):
        await store.import_archive(f"oci-archive:{tmp_path / 'missing'}")
    with pytest.raises(ConfigError, match="names no image source"):
        await store.import_archive("zip:/x")
    anonymous = docker_archive(tmp_path / "saved.tar", image(LAYERS, how=""))
    with pytest.raises(ConfigError, match="does not name its image"):
        await store.import_archive(f"docker-archive:{anonymous}")
    with pytest.raises(NotFound):
        store.get("localhost/app:v1")


@pytest.mark.parametrize("number", range(3))
async def test_blobs_that_are_no_regular_files_are_refused(store: ImageStore, tmp_path: Path, number: int) -> None:
    built = image(LAYERS)
    layout = built.layout(tmp_path / "app")
    path = layout / "blobs/sha256" / list(built.blobs)[number].removeprefix("sha256:")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PullFailed, match="no regular file"):
        await store.import_archive(f"oci:{layout}")
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(PullFailed, match="cannot read"):
        await store.import_archive(f"oci:{layout}")


async def test_a_huge_sparse_index_is_not_read(store: ImageStore, tmp_path: Path) -> None:
    layout = image(LAYERS).layout(tmp_path / "app")
    os.truncate(layout / "index.json", 1 << 40)
    with pytest.raises(PullFailed, match="are allowed"):
        await store.import_archive(f"oci:{layout}")


async def test_names_without_end_are_not_remembered(store: ImageStore, tmp_path: Path) -> None:
    path = tmp_path / "long.tar.gz"
    with gzip.open(path, "wb", 1) as packed:
        for number in range(70):
            packed.write(member(f"{number}/" + "x" * 1_000_000)[0].tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(PullFailed, match="bytes of headers and names"):
        await store.import_archive(f"oci-archive:{path}")


def test_layers_beyond_the_limit_are_not_read(tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "saved.tar", image(LAYERS), "example.com/app:1")
    limits = Limits(layers=1)
    with closing(TarFile(open_regular(path), limits)) as files, pytest.raises(Malformed, match="2 layers, and 1 are allowed"):
        DockerArchive(files, path, "", limits)
