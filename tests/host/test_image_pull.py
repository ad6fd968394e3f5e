"""Pulls from a real registry into a store on a real file system, shown by real overlay mounts."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.doubles import registry
from tests.doubles.images import ARCH, archive, directory, hard_link, image, index, member, symlink
from zlayer_driver import fastpath
from zlayer_driver.errors import NotFound, PullFailed, WrongPlatform
from zlayer_driver.image.store import ImageStore
from zlayer_driver.image.values import Image
from zlayer_driver.model import OS, PullPolicy, PullProgress

pytestmark = pytest.mark.needs("root", "linux", "docker-registry")

BASE = archive(
    directory("etc", mode=0o750, uid=3, gid=4, mtime=1_000_000_000),
    member("etc/old", b"old"),
    directory("d"),
    member("d/a", b"a"),
    member("d/b", b"b"),
    member("bin", b"#!", mode=0o4755, uid=1, gid=2, mtime=1_500_000_000),
    symlink("link", "/etc/old"),
    hard_link("again", "bin"),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.Registry]:
    with registry.running(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    opened = ImageStore(tmp_path / "images")
    yield opened
    await opened.close()


async def pull(store: ImageStore, reference: str, policy: PullPolicy = PullPolicy.IF_NOT_PRESENT) -> Image:
    return await store.pull(reference, policy=policy, auth=None)


@pytest.mark.parametrize("how", ["gzip", "zstd", ""])
async def test_files_arrive_as_they_were(store: ImageStore, server: registry.Registry, how: str) -> None:
    built = image([BASE], how=how, config={"Cmd": ["/bin"], "Labels": {"a": "b"}, "StopSignal": "SIGUSR1"})
    pulled = await pull(store, server.push(built, "files", how or "plain"))
    root = pulled.layers[0]
    assert (root / "etc/old").read_bytes() == b"old"
    assert (root / "link").readlink() == Path("/etc/old")
    info = (root / "bin").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime) == (0o4755, 1, 2, 1_500_000_000)
    assert info.st_ino == (root / "again").stat().st_ino
    etc = (root / "etc").stat()
    assert (stat.S_IMODE(etc.st_mode), etc.st_uid, etc.st_gid, etc.st_mtime) == (0o750, 3, 4, 1_000_000_000)
    assert (pulled.config.cmd, pulled.config.labels, pulled.config.stop_signal) == (("/bin",), {"a": "b"}, "SIGUSR1")
    assert pulled.digest == built.digest


async def test_a_pulled_image_is_listed_found_and_removed(store: ImageStore, server: registry.Registry) -> None:
    reference = server.push(image([BASE]), "listed", "1")
    pulled = await pull(store, reference)
    assert store.get(reference) == pulled
    assert [record.reference for record in store.list()] == [reference]
    await store.remove(reference)
    assert store.list() == []
    assert not pulled.layers[0].exists()
    with pytest.raises(NotFound):
        store.get(reference)


async def test_no_config_outlives_its_manifests(store: ImageStore, server: registry.Registry) -> None:
    await pull(store, server.push(image([BASE], config={"Cmd": ["first"]}), "moved", "1"))
    moved = server.push(image([BASE], config={"Cmd": ["second"]}), "moved", "1")
    await pull(store, moved, PullPolicy.ALWAYS)
    kept = image([BASE], config={"Cmd": ["kept"]})
    await pull(store, server.push(kept, "kept", "1"))
    await store.remove(moved)
    with closing(sqlite3.connect(store.cache_path)) as db:
        configs = [key for (key,) in db.execute("SELECT digest FROM blobs WHERE digest LIKE 'sha256:%'")]
    assert configs == [json.loads(kept.manifest)["config"]["digest"]]
    with pytest.raises(NotFound, match="does not have the image"):
        await store.remove(moved)


async def test_the_blob_cache_answers_the_probe(store: ImageStore, server: registry.Registry) -> None:
    built = image([BASE], config={"Labels": {"com.zlayer.isolation": "vm"}}, annotations={"com.zlayer.runtime": "vz"})
    reference = server.push(built, "facts", "1")
    await pull(store, reference)
    facts = fastpath.image_facts(reference, [str(store.cache_path)])
    assert (facts.os, facts.marker, facts.isolation) == (OS.LINUX, "vz", "vm")


async def test_an_index_gives_the_image_for_this_platform(store: ImageStore, server: registry.Registry) -> None:
    wanted = image([BASE])
    built = index((image([], os="windows"), "windows", "amd64"), (image([BASE], arch="s390x"), "linux", "s390x"), (wanted, "linux", ARCH))
    pulled = await pull(store, server.push(built, "index", "1"))
    assert pulled.digest == wanted.digest


async def test_an_image_for_another_system_is_refused_and_its_facts_are_kept(store: ImageStore, server: registry.Registry) -> None:
    reference = server.push(image([], os="windows"), "windows", "1")
    with pytest.raises(WrongPlatform) as refusal:
        await pull(store, reference)
    assert (refusal.value.expected, refusal.value.actual) == ("linux", "windows")
    assert fastpath.image_facts(reference, [str(store.cache_path)]).os is OS.WINDOWS


async def test_a_missing_image_says_so(store: ImageStore, server: registry.Registry) -> None:
    with pytest.raises(PullFailed, match=r"missing:1.: the registry does not have it: check its name"):
        await pull(store, f"{server.host}/missing:1")
    with pytest.raises(NotFound):
        await pull(store, f"{server.host}/missing:1", PullPolicy.NEVER)


async def test_progress_counts_to_the_end(store: ImageStore, server: registry.Registry) -> None:
    seen: list[PullProgress] = []
    await store.pull(server.push(image([BASE]), "progress", "1"), policy=PullPolicy.ALWAYS, auth=None, report=seen.append)
    assert [seen[0].phase, seen[-2].phase, seen[-1].phase] == ["download", "unpack", "done"]
    downloads = [step for step in seen if step.phase == "download"]
    assert downloads[-1].done_bytes == downloads[-1].total_bytes


async def test_of_an_image_that_shares_layers_only_its_own_move(store: ImageStore, server: registry.Registry) -> None:
    await pull(store, server.push(image([BASE]), "base", "1"))
    built = image([BASE, archive(member("own"))])
    moved: set[str] = set()
    reference = server.push(built, "app", "1")
    await store.pull(reference, policy=PullPolicy.ALWAYS, auth=None, report=lambda step: moved.add(step.layer))
    assert moved - {""} == {json.loads(built.manifest)["layers"][1]["digest"]}


async def test_parallel_pulls_share_one_and_survive_a_cancelled_waiter(store: ImageStore, server: registry.Registry) -> None:
    reference = server.push(image([BASE]), "shared", "1")
    first, second, third = (asyncio.create_task(pull(store, reference)) for _ in range(3))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == await third
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_whoever_comes_while_a_pull_is_given_up_gets_one_of_his_own(store: ImageStore, server: registry.Registry) -> None:
    reference = server.push(image([BASE]), "given-up", "1")
    begun = asyncio.Event()
    first = asyncio.create_task(store.pull(reference, policy=PullPolicy.ALWAYS, auth=None, report=lambda _step: begun.set()))
    await begun.wait()
    first.cancel()
    second = asyncio.create_task(pull(store, reference))
    assert len((await second).layers) == 1
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.needs("openssl")
async def test_a_registry_on_loopback_may_speak_https(store: ImageStore, tmp_path: Path) -> None:
    with registry.running(tmp_path, registry.self_signed(tmp_path)) as server:
        reference = server.push(image([BASE]), "secure", "1")
        assert len((await pull(store, reference)).layers) == 1
