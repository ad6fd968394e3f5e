"""How long a pull takes, from a registry on loopback to directories that can be mounted, beside podman, skopeo with umoci, and the floor.

The images are made of this machine's own files: one large layer, and one of 5,000 small files. All storage is fresh in each round. Ours runs in
a process of its own, as the peers do; it stays, as a driver does. The floor is the slower of two things that no tool can leave out, each on one
core: hashing and inflating the blobs, and writing the same files, without their owners, modes and times.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import multiprocessing
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from isal import isal_zlib

from benchmarks.conftest import Versus
from tests.doubles import registry
from tests.doubles.images import archive, directory, image, member
from zlayer_driver.image.store import ImageStore
from zlayer_driver.image.stream import inflated
from zlayer_driver.image.values import Limits
from zlayer_driver.model import PullPolicy

pytestmark = [pytest.mark.needs("root", "linux", "docker-registry", "podman", "skopeo", "umoci"), pytest.mark.timeout(600)]

SMALL_FILES = 5_000
SOURCES = ("/usr/lib", "/usr/bin", "/usr/share")
PLACES = {"memory": "/dev/shm", "disk": tempfile.gettempdir()}
ROUNDS = {70: 3, 400: 1}


def large_layer(compressed_mb: int) -> bytes:
    """Files of this machine that make about so many MB of gzip."""
    out = io.BytesIO()
    budget = compressed_mb * 1_000_000
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in files():
            if budget <= 0:
                break
            tar.add(path, path.relative_to("/"), recursive=False)
            if path.is_file():
                budget -= len(isal_zlib.compress(path.read_bytes(), 1))
    return out.getvalue()


def files() -> Iterator[Path]:
    for source in SOURCES:
        for root, directories, names in os.walk(source):
            directories.sort()
            yield Path(root)
            yield from (path for name in sorted(names) if not (path := Path(root, name)).is_symlink())


def small_layer() -> bytes:
    noise = random.Random(7)
    words = [noise.randbytes(5).hex() for _ in range(3000)]
    members = [
        member(f"app/pkg{number // 50:03d}/m{number % 50:02d}.py", " ".join(noise.choices(words, k=noise.randint(20, 900))).encode())
        for number in range(SMALL_FILES)
    ]
    return archive(directory("app"), *(directory(f"app/pkg{number:03d}") for number in range(SMALL_FILES // 50)), *members)


@dataclass(frozen=True)
class Served:
    """An image in a registry, and its layers as they are there and as they were."""

    reference: str
    blobs: tuple[bytes, ...]
    layers: tuple[bytes, ...]
    rounds: int


@pytest.fixture(scope="module", params=ROUNDS, ids=lambda mb: f"{mb}MB")
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    layers = (large_layer(request.param), small_layer())
    built = image(layers)
    with tempfile.TemporaryDirectory(prefix="zlayer-bench-", dir=PLACES["memory"]) as work, registry.running(Path(work)) as server:
        blobs = tuple(content for content in built.blobs.values() if content.startswith(b"\x1f\x8b"))
        yield Served(server.push(built, "bench", "1"), blobs, layers, ROUNDS[request.param])


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="zlayer-bench-", dir=PLACES[request.param]) as made:
        yield Path(made)


Pull = Callable[[Path], float | None]  # into a directory; may tell the seconds that count


def fresh(place: Path, pull: Pull) -> Callable[[], float]:
    """Each call pulls into a new directory. In memory it goes at once; on a disk that would slow the next round, so it waits for the end."""

    def timed() -> float:
        storage = Path(tempfile.mkdtemp(dir=place))
        if not _in_memory(place):
            os.sync()
        began = time.perf_counter()
        told = pull(storage)
        seconds = time.perf_counter() - began if told is None else told
        if _in_memory(place):
            shutil.rmtree(storage)
        return seconds

    return timed


def _in_memory(place: Path) -> bool:
    return place.is_relative_to(PLACES["memory"])


@pytest.fixture(scope="module")
def ours() -> Iterator[Callable[[Served], Pull]]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as driver:
        yield lambda served: lambda storage: driver.submit(pulled, served.reference, storage).result()


def pulled(reference: str, storage: Path) -> None:
    async def work() -> None:
        store = ImageStore(storage)
        await store.pull(reference, policy=PullPolicy.ALWAYS, auth=None)
        await store.close()

    asyncio.run(work())


def podman(served: Served) -> Pull:
    def pull(storage: Path) -> None:
        places: list[str | Path] = ["--root", storage / "root", "--runroot", storage / "run", "--storage-driver", "overlay"]
        run(storage, "podman", *places, "pull", "-q", "--tls-verify=false", served.reference)

    return pull


def skopeo_and_umoci(served: Served) -> Pull:
    def pull(storage: Path) -> None:
        layout = f"{storage}/oci:x"
        run(storage, "skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", f"docker://{served.reference}", f"oci:{layout}")
        run(storage, "umoci", "unpack", "--image", layout, storage / "bundle")

    return pull


def run(storage: Path, *argv: str | Path) -> None:
    """Temporary files lie where the storage does, so that a peer in memory is all in memory."""
    quiet = subprocess.DEVNULL
    subprocess.run(argv, check=True, stdin=quiet, stdout=quiet, stderr=quiet, env={**os.environ, "TMPDIR": str(storage)})


def floor(served: Served) -> Pull:
    """The slower of the two, in seconds."""
    files = [file for layer in served.layers for file in contents(layer)]
    folders = sorted({above for name, _ in files for above in name.parents})

    def work(storage: Path) -> float:
        began = time.perf_counter()
        for blob in served.blobs:
            hashlib.sha256(blob)
            for _ in inflated([blob], "gzip", Limits()):
                pass
        inflating = time.perf_counter() - began
        began = time.perf_counter()
        for folder in folders:
            (storage / folder).mkdir(exist_ok=True)
        for name, content in files:
            fd = os.open(storage / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(fd, content)
            os.close(fd)
        return max(inflating, time.perf_counter() - began)

    return work


def contents(layer: bytes) -> Iterator[tuple[Path, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        for info in tar:
            file = tar.extractfile(info) if info.isreg() else None
            if file is not None:
                yield Path(info.name), file.read()


def test_pull_beside_podman(served: Served, place: Path, ours: Callable[[Served], Pull], versus: Versus) -> None:
    limit = 1 / 3 if _in_memory(place) else 1 / 2
    versus(fresh(place, ours(served)), fresh(place, podman(served)), against="podman", limit=limit, rounds=served.rounds)


def test_pull_beside_the_floor(served: Served, place: Path, ours: Callable[[Served], Pull], versus: Versus) -> None:
    peer = "the slower of sha256 + inflate and raw writes"
    versus(fresh(place, ours(served)), fresh(place, floor(served)), against=peer, limit=1.5, rounds=2 * served.rounds)


@pytest.mark.parametrize("served", [70], indirect=True, ids=["70MB"])
def test_pull_beside_skopeo_and_umoci(served: Served, place: Path, ours: Callable[[Served], Pull], versus: Versus) -> None:
    versus(fresh(place, ours(served)), fresh(place, skopeo_and_umoci(served)), against="skopeo + umoci", rounds=served.rounds)
