"""The hot path beside its originals: oci-client and distribution/reference, redb, rusqlite, and Python's own sqlite3 and json.

Peers that cannot be built here (no cargo or go) are skipped. Ratios are per call; curves go over keys in a cache and over threads.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conftest import Versus
from benchmarks.peers import Go, Rust, build
from tests.doubles.blob_cache import SCHEMA, config, digest_of, manifest
from tests.replay.__main__ import rows
from tests.replay.twins import TWINS
from zlayer_driver import _fastpath, _fastpath_py
from zlayer_driver.choice import NodeShape, Request, choose
from zlayer_driver.model import ISOLATION_LABEL, OS, ImageFacts, Isolation, Platform, Target
from zlayer_driver.nomad.placement import Decider

pytestmark = pytest.mark.timeout(1200)
VECTORS = Path(__file__).parents[1] / "tests" / "data" / "vectors"
KEYS = [1_000, 10_000, 100_000, 1_000_000]
ASKED = 1000
INLINE = config("linux", "vm", history=[{"created_by": "x" * 300}], rootfs={"type": "layers", "diff_ids": ["sha256:" + "0" * 64] * 4})
SPILLED = config("linux", "vm", history=[{"created_by": "RUN make", "empty_layer": True}] * 190)


@pytest.fixture(scope="session")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cargo") is None or shutil.which("go") is None:
        pytest.skip("cargo and go are not both installed")
    return build(Path(os.environ.get("ZLAYER_PEERS") or tmp_path_factory.mktemp("peers")))


@pytest.fixture(scope="session")
def rust(peers: Path) -> Rust:
    return Rust(peers)


@pytest.fixture(scope="session")
def refs() -> list[str]:
    """References as people write them: those of the recordings that parse and are no longer than a line."""
    return [row["ref"] for row in rows(VECTORS / "refs.jsonl.gz") if "ok" in row["parse"] and len(row["ref"]) < 100]


def each(function: Callable[[str], Any], given: list[str]) -> Callable[[], None]:
    def calls() -> None:
        for ref in given:
            function(ref)

    return calls


def test_canonical_against_rust(versus: Versus, rust: Rust, refs: list[str]) -> None:
    lines = rust.lines(refs)
    versus(each(_fastpath.canonical, refs), lambda: rust.round("canonical_round", lines), against="oci-client", limit=0.1, rounds=50)


def test_canonical_against_go(versus: Versus, peers: Path, refs: list[str]) -> None:
    go = Go(peers, refs)
    versus(each(_fastpath.canonical, refs), go.canonical_round, against="distribution/reference", limit=0.1, rounds=50)


def test_canonical_many_against_rust(versus: Versus, rust: Rust, refs: list[str]) -> None:
    lines = rust.lines(refs)
    versus(
        lambda: _fastpath.canonical_many(refs), lambda: rust.round("canonical_round", lines), against="oci-client", limit=0.05, rounds=50
    )


def test_canonical_many_against_go(versus: Versus, peers: Path, refs: list[str]) -> None:
    go = Go(peers, refs)
    versus(lambda: _fastpath.canonical_many(refs), go.canonical_round, against="distribution/reference", limit=0.05, rounds=50)


def test_sanitize_against_rust(versus: Versus, rust: Rust, refs: list[str]) -> None:
    lines = rust.lines(refs)
    versus(each(_fastpath.sanitize, refs), lambda: rust.round("sanitize_round", lines), against="str::replace", limit=1.0, rounds=50)


@pytest.mark.parametrize("name", ["canonical", "sanitize", "cache_keys"])
def test_references_against_the_readable_twin(versus: Versus, refs: list[str], name: str) -> None:
    versus(each(getattr(_fastpath, name), refs), each(getattr(_fastpath_py, name), refs), against="_fastpath_py", rounds=10)


def ref_of(i: int) -> str:
    return f"docker.io/library/image-{i}:latest"


def sqlite_cache(folder: Path, count: int, blob: bytes) -> Path:
    """A closed cache of ``count`` images that share one config."""
    path = folder / "blobs.sqlite"
    body, digest = manifest(digest_of(blob), "vz"), digest_of(blob)
    inline = blob if len(blob) <= 4096 else b""
    if not inline:
        (folder / "blobs.blobs").mkdir()
        (folder / "blobs.blobs" / digest.replace(":", "_")).write_bytes(blob)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(SCHEMA)
        database.execute("INSERT INTO blobs VALUES (?, ?, ?, 1, 1)", (digest, inline, len(blob)))
        keys = ((f"manifest:{ref_of(i)}", body, len(body)) for i in range(count))
        database.executemany("INSERT INTO blobs VALUES (?, ?, ?, 1, 1)", keys)
    return path


class PythonPeer:
    """The same three facts with Python's sqlite3 on a kept connection, and json."""

    def __init__(self, path: Path) -> None:
        self._folder = path.with_suffix(".blobs")
        self._database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)

    def close(self) -> None:
        self._database.close()

    def _blob(self, key: str) -> Any:
        (blob,) = self._database.execute("SELECT data FROM blobs WHERE digest = ?", (key,)).fetchone()
        return json.loads(blob or (self._folder / key.replace(":", "_")).read_bytes())

    def facts(self, ref: str) -> tuple[Any, ...]:
        body = self._blob(f"manifest:{ref}")
        image = self._blob(body["config"]["digest"])
        return image["os"], body["annotations"].get("com.zlayer.runtime"), image["config"]["Labels"].get("com.zlayer.isolation")


def spread(count: int) -> list[str]:
    """Images from all over the cache, in an order that has nothing to do with the keys'."""
    return [ref_of(i * 7919 % count) for i in range(ASKED)]


def first_time(path: Path, asked: list[str], *, many: bool = False) -> Callable[[], float]:
    """A round on a new handle whose pages are in SQLite's cache, of which only the questions are timed."""

    def round_() -> float:
        with _fastpath.BlobCache(path) as cache:
            cache.get_many([f"manifest:{ref}" for ref in asked])
            for _ in range(10):  # a handle that is asked often enough hears of changes
                cache.facts(asked[-1])
            begun = time.perf_counter()
            if many:
                cache.facts_many(asked[:-1])
            else:
                each(cache.facts, asked[:-1])()
            return time.perf_counter() - begun

    return round_


@pytest.fixture
def python_peer(tmp_path: Path) -> Iterator[Callable[[Path], PythonPeer]]:
    """On a copy of its own: its connection makes files beside the database."""
    opened: list[PythonPeer] = []

    def peer(path: Path) -> PythonPeer:
        copy = tmp_path / "peer"
        shutil.copytree(path.parent, copy)
        opened.append(PythonPeer(copy / path.name))
        return opened[-1]

    yield peer
    for one in opened:
        one.close()


@pytest.mark.parametrize("count", KEYS)
def test_facts_asked_for_the_first_time(versus: Versus, tmp_path: Path, python_peer: Callable[[Path], PythonPeer], count: int) -> None:
    (tmp_path / "ours").mkdir()
    path, asked = sqlite_cache(tmp_path / "ours", count, INLINE), spread(count)
    peer = python_peer(path)
    versus(first_time(path, asked), each(peer.facts, asked[:-1]), against="sqlite3 + json", limit=1 / 3, rounds=10)


@pytest.mark.parametrize("many", [False, True], ids=["each", "many"])
def test_facts_beside_a_live_writer(versus: Versus, tmp_path: Path, many: bool) -> None:
    path, asked = sqlite_cache(tmp_path, 10_000, INLINE), spread(10_000)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer, closing(PythonPeer(path)) as peer:
        writer.execute("UPDATE blobs SET last_accessed = 2 WHERE digest = ?", (digest_of(INLINE),))
        versus(first_time(path, asked, many=many), each(peer.facts, asked[:-1]), against="sqlite3 + json", limit=1 / 3, rounds=10)


@pytest.mark.parametrize("count", KEYS)
def test_facts_asked_for_again(versus: Versus, tmp_path: Path, python_peer: Callable[[Path], PythonPeer], count: int) -> None:
    (tmp_path / "ours").mkdir()
    path, asked = sqlite_cache(tmp_path / "ours", count, INLINE), spread(count)
    peer = python_peer(path)
    with _fastpath.BlobCache(path) as cache:
        versus(each(cache.facts, asked), each(peer.facts, asked), against="sqlite3 + json", limit=1 / 30, rounds=20)


def test_facts_with_a_spilled_config(versus: Versus, tmp_path: Path, python_peer: Callable[[Path], PythonPeer]) -> None:
    (tmp_path / "ours").mkdir()
    path, asked = sqlite_cache(tmp_path / "ours", 1000, SPILLED), spread(1000)
    peer = python_peer(path)
    versus(first_time(path, asked), each(peer.facts, asked[:-1]), against="sqlite3 + read + json", limit=1 / 3, rounds=10)


def test_get_against_rusqlite(versus: Versus, rust: Rust, tmp_path: Path) -> None:
    path = sqlite_cache(tmp_path, 10_000, INLINE)
    keys = [f"manifest:{ref}" for ref in spread(10_000)]
    lines, uri = rust.lines(keys), f"file:{path}?immutable=1".encode()
    with _fastpath.BlobCache(path) as cache:
        versus(each(cache.get, keys), lambda: rust.round("rusqlite_round", uri, lines), against="rusqlite, immutable", rounds=20)


@pytest.mark.parametrize("many", [False, True], ids=["each", "many"])
@pytest.mark.parametrize("count", KEYS)
def test_redb_get_on_a_kept_handle(versus: Versus, rust: Rust, tmp_path: Path, count: int, many: bool) -> None:
    """Each: with a system call for the check for change. Many: with one for each of a few hundred keys, as a kept transaction has none."""
    path, keys = tmp_path / "blobs.redb", [f"manifest:{ref}" for ref in spread(count)]
    rust.write_redb(path, 4, count, 400)
    lines, kept = rust.lines(keys), rust.keep_redb(path)
    with _fastpath.BlobCache(path) as cache:
        assert len(cache.get(keys[0]) or b"") == 400
        ours = (lambda: cache.get_many(keys)) if many else each(cache.get, keys)
        versus(ours, lambda: rust.round("redb4_get_round", kept, lines), against="redb 4, a kept transaction", limit=1.0, rounds=20)


@pytest.mark.parametrize("version", [2, 4])
def test_redb_open_get_close(versus: Versus, rust: Rust, tmp_path: Path, version: int) -> None:
    path, crate = tmp_path / "blobs.redb", tmp_path / "crate.redb"
    rust.write_redb(path, version, 1000, 400)
    rust.write_redb(crate, 4, 1000, 400)
    keys = [f"manifest:{ref}" for ref in spread(1000)][:100]
    lines, name = rust.lines(keys), str(crate).encode()

    def ours() -> None:
        for key in keys:
            with _fastpath.BlobCache(path) as cache:
                cache.get(key)

    versus(ours, lambda: rust.round("redb4_open_round", name, lines), against="redb 4 ReadOnlyDatabase", limit=0.5, rounds=20)


def test_sidecar(versus: Versus, tmp_path: Path) -> None:
    (tmp_path / "image_v1").mkdir()
    sidecar = tmp_path / "image_v1" / "metadata.json"
    sidecar.write_bytes(json.dumps({"reference": "image:v1", "os": "darwin", "architecture": "arm64"}).encode())
    cache = _fastpath.BlobCache(sqlite_cache(tmp_path, 1000, INLINE))
    name = str(sidecar)

    def bare() -> None:
        for _ in range(ASKED):
            fd = os.open(name, os.O_RDONLY)
            os.read(fd, 4096)
            os.close(fd)

    def ours() -> None:
        for _ in range(ASKED):
            _fastpath.image_facts("image:v1", [cache])

    with cache:
        versus(ours, bare, against="os.open + read + close", limit=1.5, rounds=20)


def requests(count: int) -> list[Request]:
    return [
        Request(
            service=f"job-{n}",
            image="x",
            runtime=Isolation.SANDBOX if n % 10 == 9 else None,
            labels={ISOLATION_LABEL: "vm", "team": "blue"} if n % 10 == 0 else {},
            platform=Platform(OS.LINUX, "amd64") if n % 3 == 0 else None,
        )
        for n in range(count)
    ]


def image_facts(count: int) -> list[ImageFacts]:
    mixed = random.Random(1)
    return [mixed.choice([ImageFacts(), ImageFacts(OS.LINUX), ImageFacts(OS.LINUX, None, "vm")]) for _ in range(count)]


NODE = NodeShape(OS.LINUX, frozenset({Target.PRIMARY, Target.DELEGATE}))


@pytest.mark.parametrize("count", [1_000, 10_000, 100_000, 1_000_000])
def test_choose_many(versus: Versus, count: int) -> None:
    """Beside a time, for it has no original: 100 ns a decision."""
    asked, known, one = requests(count), image_facts(count), partial(choose, node=NODE)
    versus(lambda: _fastpath.choose_many(asked, known, one), lambda: 100e-9 * count, against="100 ns each", limit=1.0, rounds=10)


def in_parts(pool: ThreadPoolExecutor, threads: int, work: Callable[[slice], Any], count: int) -> Callable[[], Any]:
    parts = [slice(count * i // threads, count * (i + 1) // threads) for i in range(threads)]
    return lambda: list(pool.map(work, parts))


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("what", ["canonical_many", "choose_many", "JobLines"])
def test_batches_by_threads(versus: Versus, refs: list[str], what: str, threads: int) -> None:
    """The same work in all. Of `choose_many` only the look-up of kinds needs no interpreter lock (see README); of `JobLines` all but new kinds."""
    many, one = refs * 20, partial(choose, node=NODE)
    jobs = [b'{"id": "job-%d", "image": "image-%d"}\n' % (n, n % 100) for n in range(100_000)]
    asked, known = requests(100_000), image_facts(100_000)
    decider = Decider(NODE, lambda _image: ImageFacts())
    lines = _fastpath.JobLines(decider.tell, decider.know)
    works: dict[str, tuple[Callable[[slice], Any], int]] = {
        "canonical_many": (lambda part: _fastpath.canonical_many(many[part]), len(many)),
        "choose_many": (lambda part: _fastpath.choose_many(asked[part], known[part], one), len(asked)),
        "JobLines": (lambda part: lines.answer(b"".join(jobs[part]), 1), len(jobs)),
    }
    work, count = works[what]
    with ThreadPoolExecutor(threads) as pool:
        versus(in_parts(pool, threads, work, count), in_parts(pool, 1, work, count), against="one thread", rounds=10)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__.rpartition(".")[2])
def test_facts_by_threads(versus: Versus, tmp_path: Path, twin: Any, threads: int) -> None:
    """The same number of questions in all, on one handle; the interpreter lock is held throughout each."""
    path, asked = sqlite_cache(tmp_path, 1000, INLINE), spread(1000)
    with twin.BlobCache(path) as cache, ThreadPoolExecutor(threads) as pool:
        parts = [asked[i::threads] for i in range(threads)]
        versus(
            lambda: list(pool.map(lambda part: each(cache.facts, part)(), parts)), each(cache.facts, asked), against="one thread", rounds=10
        )
