"""A handle on a redb file: genuine legacy stores, changes, damage and hostile pages; on both twins."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from tests.doubles.blob_cache import config, write_cache
from tests.replay.redb import listing
from tests.replay.twins import TWINS, stored
from zlayer_driver._fastpath_py.xxh3 import xxh3_128
from zlayer_driver.errors import CacheError
from zlayer_driver.model import OS, ImageFacts

REDB = Path(__file__).parents[1] / "data" / "vectors" / "redb"
KEY = "manifest:docker.io/library/alpine:latest"

both_twins = pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__.rpartition(".")[2])
pytestmark = pytest.mark.usefixtures("no_fd_leak")


def raw_of(name: str) -> bytes:
    return stored(REDB / "shared" / f"{name}.redb")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "blobs.redb"


@both_twins
def test_a_genuine_legacy_store_is_found_by_canonical_name_then_as_typed(twin: Any, file: Path) -> None:
    file.write_bytes(raw_of("zlayer-legacy-clean"))
    images = {image["typed"]: image for image in json.loads((REDB / "legacy-images.json").read_text())}
    with twin.BlobCache(file) as cache:
        assert cache.format == "redb"
        for typed, image in images.items():
            known = images.get(twin.canonical(typed), image)
            assert cache.facts(typed) == ImageFacts(known["os"] and OS(known["os"]), known["marker"], known["isolation"])
        assert cache.facts("not/there") == ImageFacts()


@both_twins
def test_a_directory_stands_for_the_legacy_file_in_it(twin: Any, tmp_path: Path) -> None:
    (tmp_path / "blob_cache.redb").write_bytes(raw_of("r4-small"))
    with twin.BlobCache(tmp_path) as cache:
        assert len(cache.keys()) == 3


@both_twins
def test_a_kept_handle_follows_its_file_even_into_another_format(twin: Any, file: Path) -> None:
    file.write_bytes(raw_of("r4-emptytables"))
    with twin.BlobCache(file) as cache:
        assert cache.keys() == []
        file.write_bytes(raw_of("r4-small"))
        assert len(cache.keys()) == 3
        file.unlink()
        with pytest.raises(CacheError, match="no such file"):
            cache.keys()
        write_cache(file, {"alpine": config("windows")})
        assert cache.facts("alpine").os == OS.WINDOWS
        assert cache.format == "sqlite"
        file.unlink()
        file.write_bytes(raw_of("r3-small"))
        assert len(cache.keys()) == 3
        assert cache.format == "redb"


@both_twins
def test_each_size_of_value_is_read(twin: Any, file: Path) -> None:
    file.write_bytes(raw_of("r4-large"))
    with twin.BlobCache(file) as cache:
        keys = cache.keys()
        sizes = [len(cache.get(key) or b"") for key in keys]
        assert cache.get_many(keys) == [cache.get(key) for key in keys]
        assert max(sizes) == 600_000


@both_twins
@pytest.mark.parametrize("change", ["later", "order", "loop"])
def test_a_page_that_points_astray_is_one_error(twin: Any, file: Path, change: str) -> None:
    raw = bytearray(raw_of("r4-small"))
    slot = 64 + 128 * (raw[9] & 1)
    page = {"later": 0xFFFF, "order": 31 << 59, "loop": int.from_bytes(raw[slot + 40 : slot + 48], "little")}[change]
    raw[slot + 8 : slot + 16] = page.to_bytes(8, "little")
    raw[slot + 112 : slot + 128] = xxhash.xxh3_128_intdigest(bytes(raw[slot : slot + 112])).to_bytes(16, "little")
    file.write_bytes(raw)
    with pytest.raises(CacheError):
        twin.BlobCache(file)


def damages(raw: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Flips, runs of zeroes, cuts and swaps of pages, most of them where something lies."""
    chance = random.Random(seed)
    used = [at for at in range(0, len(raw), 512) if raw[at : at + 512].strip(b"\0")]
    for _ in range(count):
        damaged = bytearray(raw)
        for _ in range(chance.randint(1, 3)):
            at = chance.choice(used) + chance.randrange(512)
            match chance.randrange(4):
                case 0:
                    damaged[at % len(damaged)] ^= 1 << chance.randrange(8)
                case 1:
                    damaged[at : at + chance.randrange(64)] = bytes(chance.randrange(64))
                case 2:
                    del damaged[at:]
                    damaged += bytes(4096)
                case _:
                    damaged[at : at + 16] = damaged[64:80]
        yield bytes(damaged)


@pytest.mark.parametrize("name", ["r4-small", "r3-small", "r4-quickrepair", "r4-twophaseOpenCopy"])
def test_the_twins_agree_on_any_damage(name: str, file: Path) -> None:
    for raw in damages(raw_of(name), 60, seed=len(name)):
        file.write_bytes(raw)
        compiled, plain = (listing(twin, file) for twin in TWINS)
        assert repr(compiled) == repr(plain)


def test_checksum_is_that_of_the_reference_library() -> None:
    chance = random.Random(3)
    for size in [*range(520), 1023, 1024, 1025, 2048, 4095, 4096, 70_000]:
        data = chance.randbytes(size)
        assert xxh3_128(data) == xxhash.xxh3_128_intdigest(data).to_bytes(16, "little")


@both_twins
def test_a_child_reads_through_an_inherited_handle(twin: Any, file: Path) -> None:
    file.write_bytes(raw_of("r4-small"))
    with twin.BlobCache(file) as cache:
        assert cache.get(KEY)
        child = os.fork()
        if child == 0:
            os._exit(0 if cache.get(KEY) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert cache.get(KEY)
