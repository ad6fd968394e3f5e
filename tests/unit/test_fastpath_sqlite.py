"""A handle on a SQLite blob cache: beside writers, after changes, across threads and forks, on damaged and hostile files; on both twins."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.blob_cache import config, digest_of, manifest, open_writer, put, put_image, write_cache
from tests.replay.twins import TWINS
from zlayer_driver.errors import CacheBusy, CacheError
from zlayer_driver.model import OS, ImageFacts

pytestmark = [
    pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__.rpartition(".")[2]),
    pytest.mark.usefixtures("no_fd_leak"),
]

LINUX = config("linux", "vm")
WINDOWS = config("windows", "sandbox")


def test_facts_blobs_and_keys(twin: Any, tmp_path: Path) -> None:
    path = tmp_path / "blobs.redb"  # ZLayer's name for it; the content tells
    with closing(open_writer(path)) as writer:
        put_image(writer, path, "alpine", LINUX, "vz")
    with twin.BlobCache(path) as cache:
        assert cache.format == "sqlite"
        assert cache.path == str(path)
        assert cache.facts("docker.io/library/alpine:latest") == ImageFacts(OS.LINUX, "vz", "vm")
        assert cache.facts("nginx") == ImageFacts()
        assert cache.keys() == ["manifest:docker.io/library/alpine:latest", digest_of(LINUX)]
        assert cache.get(digest_of(LINUX)) == LINUX
        assert [cache.get(key) for key in ("alpine", "sha256:00", "manifest:a\0b", "manifest:\udcff", "")] == [None] * 5


def test_a_directory_stands_for_the_file_in_it(twin: Any, tmp_path: Path) -> None:
    write_cache(tmp_path / "blob_cache.sqlite", {"alpine": LINUX})
    with twin.BlobCache(tmp_path) as cache:
        assert cache.facts("alpine").os == OS.LINUX


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_each_commit_of_a_live_writer_is_seen(twin: Any, tmp_path: Path, journal: str) -> None:
    path = tmp_path / "blobs.sqlite"
    with closing(open_writer(path, journal=journal)) as writer, twin.BlobCache(path) as cache:
        for i in range(20):
            expected = (LINUX, OS.LINUX) if i % 2 else (WINDOWS, OS.WINDOWS)
            put_image(writer, path, "alpine", expected[0])
            assert [cache.facts("alpine").os for _ in range(3)] == [expected[1]] * 3
        writer.execute("BEGIN IMMEDIATE")
        put_image(writer, path, "alpine", config("darwin"))
        assert cache.facts("alpine").os == OS.LINUX
        writer.execute("COMMIT")
        assert cache.facts("alpine").os == OS.DARWIN


def test_many_are_answered_as_each_alone(twin: Any, tmp_path: Path) -> None:
    path = tmp_path / "blobs.sqlite"
    refs = [f"image:{i}" for i in range(600)]
    with closing(open_writer(path)) as writer, twin.BlobCache(path) as cache:
        for i, ref in enumerate(refs[::2]):
            put_image(writer, path, ref, LINUX if i % 2 else WINDOWS)
        keys = [f"manifest:{twin.canonical(ref)}" for ref in refs]
        for _ in range(3):
            assert cache.facts_many(refs) == [cache.facts(ref) for ref in refs]
            assert cache.get_many(keys) == [cache.get(key) for key in keys]
            assert writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
            put_image(writer, path, refs[1], LINUX)
        assert cache.facts_many(refs[:3])[1].os == OS.LINUX
        assert cache.facts_many([]) == cache.get_many(iter([])) == []


def test_a_kept_handle_does_not_hold_back_a_checkpoint(twin: Any, tmp_path: Path) -> None:
    path = tmp_path / "blobs.sqlite"
    with closing(open_writer(path)) as writer:
        put_image(writer, path, "alpine", LINUX)
        with twin.BlobCache(path) as cache:
            assert cache.facts("alpine").os == OS.LINUX
            assert writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
            assert cache.facts("alpine").os == OS.LINUX
            put_image(writer, path, "alpine", WINDOWS)
            assert cache.facts("alpine").os == OS.WINDOWS


def test_the_locks_of_a_writer_in_this_process_stay(twin: Any, tmp_path: Path) -> None:
    path = tmp_path / "blobs.sqlite"
    with closing(open_writer(path, journal="delete")) as writer:
        put_image(writer, path, "alpine", LINUX)
        writer.execute("BEGIN EXCLUSIVE")
        try:
            with twin.BlobCache(path) as cache:
                cache.facts("alpine")
        except CacheBusy:
            pass
        script = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
        other = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
        assert "database is locked" in other.stderr
        writer.execute("COMMIT")


def test_a_locked_database_is_busy(twin: Any, tmp_path: Path) -> None:
    path = tmp_path / "blobs.sqlite"
    with closing(open_writer(path, journal="delete")) as writer:
        put_image(writer, path, "alpine", LINUX)
        writer.execute("BEGIN EXCLUSIVE")
        put_image(writer, path, "nginx", LINUX)
        with pytest.raises(CacheBusy):
            twin.BlobCache(path)
        with pytest.raises(CacheBusy):
            twin.image_facts("alpine", [path])
        writer.execute("ROLLBACK")
        assert twin.image_facts("alpine", [path]).os == OS.LINUX


def test_a_writer_that_was_killed_leaves_a_readable_cache(twin: Any, tmp_path: Path) -> None:
    path, copy = tmp_path / "blobs.sqlite", tmp_path / "copy"
    copy.mkdir()
    with closing(open_writer(path)) as writer:
        put_image(writer, path, "alpine", LINUX)
        for name in ("blobs.sqlite", "blobs.sqlite-wal"):
            shutil.copy(tmp_path / name, copy)
    with twin.BlobCache(copy / "blobs.sqlite") as cache:
        assert [cache.facts("alpine").os for _ in range(2)] == [OS.LINUX] * 2
    assert sorted(found.name for found in copy.iterdir()) == ["blobs.sqlite", "blobs.sqlite-wal"]


def _grown(path: Path) -> None:
    with closing(open_writer(path)) as writer:
        put_image(writer, path, "alpine", WINDOWS)
        for i in range(200):
            put_image(writer, path, f"filler:{i}", LINUX)


def _replaced(path: Path) -> None:
    write_cache(path.with_name("new"), {"alpine": WINDOWS})
    path.with_name("new").replace(path)


def _rewritten(path: Path) -> None:
    write_cache(path.with_name("new"), {"alpine": WINDOWS})
    path.write_bytes(path.with_name("new").read_bytes())


@pytest.mark.parametrize("change", [_grown, _replaced, _rewritten])
def test_a_kept_handle_notices_that_its_file_is_another(twin: Any, tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "blobs.sqlite"
    write_cache(path, {"alpine": LINUX})
    with twin.BlobCache(path) as cache:
        assert cache.facts("alpine").os == OS.LINUX
        change(path)
        assert cache.facts("alpine").os == OS.WINDOWS


def test_a_kept_handle_survives_that_its_file_is_gone_for_a_while(twin: Any, tmp_path: Path) -> None:
    path = tmp_path / "blobs.sqlite"
    write_cache(path, {"alpine": LINUX})
    with twin.BlobCache(path) as cache:
        path.rename(tmp_path / "aside")
        with pytest.raises(CacheError, match="no such file"):
            cache.facts("alpine")
        (tmp_path / "aside").rename(path)
        assert cache.facts("alpine").os == OS.LINUX


def test_a_link_is_followed_to_its_logs(twin: Any, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    path = tmp_path / "store" / "blobs.sqlite"
    (tmp_path / "link").symlink_to(path)
    with closing(open_writer(path)) as writer:
        put_image(writer, path, "alpine", LINUX)
        with twin.BlobCache(tmp_path / "link") as cache:
            assert cache.facts("alpine").os == OS.LINUX
            put_image(writer, path, "alpine", WINDOWS)
            assert cache.facts("alpine").os == OS.WINDOWS


def test_spilled_blobs_count_only_as_what_they_are(twin: Any, tmp_path: Path) -> None:
    path = tmp_path / "blobs.sqlite"
    big = config("windows", "vm", pad="x" * 9500)
    with closing(open_writer(path)) as writer:
        put_image(writer, path, "big", big)
    spill = tmp_path / "blobs.blobs" / digest_of(big).replace(":", "_")
    with twin.BlobCache(path) as cache:
        assert cache.facts("big") == ImageFacts(OS.WINDOWS, None, "vm")
    for damage in (b"", big[:-1], big.replace(b"windows", b"linux")):
        spill.write_bytes(damage)
        with twin.BlobCache(path) as cache:
            assert cache.facts("big") == ImageFacts()
            assert cache.get(digest_of(big)) is None
    spill.unlink()
    spill.symlink_to("/etc/passwd")
    with twin.BlobCache(path) as cache:
        assert cache.get(digest_of(big)) is None
    spill.unlink()
    os.mkfifo(spill)
    with twin.BlobCache(path) as cache:
        assert cache.get(digest_of(big)) is None


def test_names_that_share_a_spill_file_are_told_apart(twin: Any, tmp_path: Path) -> None:
    path = tmp_path / "blobs.sqlite"
    linux, windows = (manifest(digest_of(blob), pad="x" * 5000) for blob in (LINUX, WINDOWS))
    with closing(open_writer(path)) as writer:
        put_image(writer, path, "other", LINUX)
        put_image(writer, path, "another", WINDOWS)
        put(writer, path, "manifest:q.io/c/d:v1", linux)
        assert _os_of(twin, path, "q.io/c/d:v1") == OS.LINUX
        put(writer, path, "manifest:q.io/c_d:v1", windows + b" ")
        assert [_os_of(twin, path, ref) for ref in ("q.io/c/d:v1", "q.io/c_d:v1")] == [None, OS.WINDOWS]
        put(
            writer,
            path,
            "manifest:q.io/c_d:v1",
            windows.replace(b'"schemaVersion": 2', b'"schemaVersion":2')[: len(linux)].ljust(len(linux)),
        )
        assert [_os_of(twin, path, ref) for ref in ("q.io/c/d:v1", "q.io/c_d:v1")] == [None, None]
        put(writer, path, "manifest:q.io/c_d:v1", manifest(digest_of(WINDOWS)))
        assert _os_of(twin, path, "q.io/c_d:v1") == OS.WINDOWS


def _os_of(twin: Any, path: Path, ref: str) -> OS | None:
    with twin.BlobCache(path) as cache:
        found: OS | None = cache.facts(ref).os
        return found


def test_a_row_that_does_not_hash_to_its_key_is_a_miss(twin: Any, tmp_path: Path) -> None:
    path = tmp_path / "blobs.sqlite"
    with closing(open_writer(path)) as writer:
        put_image(writer, path, "alpine", LINUX, "vz")
        writer.execute("UPDATE blobs SET data = ? WHERE digest = ?", (WINDOWS, digest_of(LINUX)))
    with twin.BlobCache(path) as cache:
        assert cache.facts("alpine") == ImageFacts(marker="vz")
        assert cache.get(digest_of(LINUX)) is None


def test_threads_share_a_handle(twin: Any, tmp_path: Path) -> None:
    path = tmp_path / "blobs.sqlite"
    write_cache(path, {f"image:{i}": LINUX if i % 2 else WINDOWS for i in range(40)})
    expected = [OS.LINUX if i % 2 else OS.WINDOWS for i in range(40)]
    with twin.BlobCache(path) as cache, ThreadPoolExecutor(4) as threads:
        answers = threads.map(lambda _: [cache.facts(f"image:{i}").os for i in range(40)], range(16))
        assert list(answers) == [expected] * 16


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_and_its_parent_both_use_a_handle(twin: Any, tmp_path: Path) -> None:
    path = tmp_path / "blobs.sqlite"
    with closing(open_writer(path)) as writer:
        put_image(writer, path, "alpine", LINUX)
        with twin.BlobCache(path) as cache:
            assert cache.facts("alpine").os == OS.LINUX
            child = os.fork()
            if child == 0:
                os._exit(0 if cache.facts("alpine").os == OS.LINUX else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            put_image(writer, path, "alpine", WINDOWS)
            assert cache.facts("alpine").os == OS.WINDOWS


@pytest.mark.needs("root")
def test_a_read_only_directory_is_enough(twin: Any) -> None:
    script = f"import os; from {twin.__name__} import BlobCache; os.setuid(65534); print(BlobCache(os.environ['CACHE']).facts('alpine').os)"
    with tempfile.TemporaryDirectory() as folder:  # the folders of pytest are for one user only
        path = Path(folder, "blobs.sqlite")
        write_cache(path, {"alpine": LINUX})
        path.parent.chmod(0o555)
        environment = {**os.environ, "CACHE": str(path)}
        found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
        path.parent.chmod(0o755)
    assert (found.stdout.strip(), found.stderr) == ("linux", "")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it has no table «blobs»"),
        (b"hello", "it is no SQLite or redb file"),
        (b"redb\x1a\n\xa9\r\n", "it is shorter than its header"),
        (b"\0" * 9000, "it is no SQLite or redb file"),
    ],
)
def test_what_is_no_cache_is_one_clear_error(twin: Any, tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "blobs.sqlite"
    path.write_bytes(content)
    with pytest.raises(CacheError) as caught:
        twin.BlobCache(path)
    assert caught.value.reason == reason
    assert twin.image_facts("alpine", [path, tmp_path / "gone"]) == ImageFacts()
    assert [found.name for found in tmp_path.iterdir()] == ["blobs.sqlite"]


@pytest.mark.parametrize(
    "schema",
    [
        "CREATE TABLE other (digest TEXT)",
        "CREATE TABLE b (digest TEXT, data BLOB, last_accessed INTEGER); CREATE VIEW blobs AS SELECT * FROM b",
        "CREATE TABLE blobs (digest TEXT PRIMARY KEY, last_accessed INTEGER)",
        "CREATE TABLE blobs (digest TEXT PRIMARY KEY, data BLOB)",
    ],
)
def test_another_schema_is_an_error(twin: Any, tmp_path: Path, schema: str) -> None:
    with closing(sqlite3.connect(tmp_path / "blobs.sqlite")) as database:
        database.executescript(schema)
    with pytest.raises(CacheError):
        twin.BlobCache(tmp_path / "blobs.sqlite")


def test_a_closed_handle_says_so(twin: Any, tmp_path: Path) -> None:
    write_cache(tmp_path / "blobs.sqlite", {"alpine": LINUX})
    cache = twin.BlobCache(tmp_path / "blobs.sqlite")
    cache.close()
    cache.close()
    for question in (cache.keys, lambda: cache.facts("alpine"), lambda: cache.get("manifest:x")):
        with pytest.raises(CacheError, match="the handle is closed"):
            question()


def test_a_name_with_a_nul_is_an_error(twin: Any) -> None:
    with pytest.raises(CacheError, match="its name has a NUL"):
        twin.BlobCache("a\0b")


def test_facts_come_from_the_first_cache_that_has_them(twin: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "blobs", tmp_path / "b" / "blobs"
    for path in (first, second):
        path.parent.mkdir()
    with closing(open_writer(first)) as writer:
        put_image(writer, first, "alpine", config(None), "vz")
        put_image(writer, first, "odd", b'{"os": 5}')
    with closing(open_writer(second)) as writer:
        put_image(writer, second, "alpine", LINUX, "vz-linux")
        put_image(writer, second, "odd", LINUX, "vz")
    with twin.BlobCache(first) as cache:
        assert twin.image_facts("alpine", [tmp_path / "gone", cache, second]) == ImageFacts(OS.LINUX, "vz", "vm")
        assert twin.image_facts("odd", [cache, second]) == ImageFacts(marker="vz")


def test_a_sidecar_wins_for_the_os_and_stays_in_its_store(twin: Any, tmp_path: Path) -> None:
    path = tmp_path / "store" / "blobs.sqlite"
    path.parent.mkdir()
    write_cache(path, {"alpine": LINUX})
    sidecar = b'{"reference": "alpine", "os": "darwin", "architecture": "arm64"}'
    for folder in (path.parent / "alpine", path.parent, tmp_path):
        folder.mkdir(exist_ok=True)
        (folder / "metadata.json").write_bytes(sidecar)
    assert twin.image_facts("alpine", [path]) == ImageFacts(OS.DARWIN, None, "vm")
    assert [twin.image_facts(ref, [path]) for ref in ("", ".", "..", "alpine\0")] == [ImageFacts()] * 4
    (path.parent / "alpine" / "metadata.json").write_bytes(sidecar + b"x")
    assert twin.image_facts("alpine", [path]).os == OS.LINUX
