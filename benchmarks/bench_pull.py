"""How long a pull takes, from a registry on loopback to directories that can be mounted, beside podman and skopeo with umoci.

The peers get fresh storage each round and take turns, round by round, in one run. The image is made of this machine's own files: one large layer,
and one of 5,000 small files. The floors are what no tool can go below: hashing and inflating the largest layer, and writing the same files.
Run as root: ``python -m benchmarks.bench_pull [--mb 70] [--rounds 5] [--dir DIR] [--how gzip|zstd]``; DIR chooses the file system.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.doubles import registry
from tests.doubles.images import Built, archive, directory, image, member
from zlayer_driver.image.store import ImageStore
from zlayer_driver.image.stream import inflated
from zlayer_driver.image.values import Limits
from zlayer_driver.model import PullPolicy

SMALL_FILES = 5_000
SOURCES = ("/usr/lib", "/usr/bin", "/usr/share")


def large_layer(compressed_mb: int) -> bytes:
    """Files of this machine until they make about so many MB of gzip."""
    out = io.BytesIO()
    budget = compressed_mb * 2_900_000
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in files():
            if budget <= 0:
                break
            tar.add(path, path.relative_to("/"), recursive=False)
            budget -= path.stat().st_size
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


class Peers:
    """Each pulls ``reference`` into fresh storage below ``root``; a round's storage is moved aside, because deleting slows the next one."""

    def __init__(self, reference: str, root: Path) -> None:
        self.reference = reference
        self.root = root
        self.peers: dict[str, Callable[[Path], None]] = {"zlayer": self.ours}
        if shutil.which("podman"):
            self.peers["podman"] = self.podman
        if shutil.which("skopeo") and shutil.which("umoci"):
            self.peers["skopeo+umoci"] = self.skopeo_umoci

    def ours(self, storage: Path) -> None:
        asyncio.run(self._pull(storage))

    async def _pull(self, storage: Path) -> None:
        store = ImageStore(storage)
        await store.pull(self.reference, policy=PullPolicy.ALWAYS, auth=None)
        await store.close()

    def podman(self, storage: Path) -> None:
        options: list[str | Path] = ["--root", storage / "root", "--runroot", storage / "run", "--storage-driver", "overlay"]
        run("podman", *options, "pull", "-q", "--tls-verify=false", self.reference)

    def skopeo_umoci(self, storage: Path) -> None:
        run("skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", f"docker://{self.reference}", f"oci:{storage}/oci:x")
        run("umoci", "unpack", "--image", f"{storage}/oci:x", storage / "bundle")

    def measure(self, rounds: int) -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = {name: [] for name in self.peers}
        for number in range(rounds):
            for name, pull in self.peers.items():
                storage = self.root / f"{name}-{number}"
                storage.mkdir()
                os.sync()
                began = time.perf_counter()
                pull(storage)
                seconds[name].append(time.perf_counter() - began)
        return seconds


def run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def floors(built: Built, how: str, layers: list[bytes], root: Path) -> dict[str, float]:
    """Seconds of sha256 and inflate over the largest layer, and of plain writes of all files."""
    largest = max(built.blobs.values(), key=len)
    began = time.perf_counter()
    hashlib.sha256(largest)
    for _ in inflated([largest], how, Limits()):
        pass
    inflating = time.perf_counter() - began
    data = [content for layer in layers for content in contents(layer)]
    root.mkdir()
    began = time.perf_counter()
    for number, content in enumerate(data):
        fd = os.open(root / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(fd, content)
        os.close(fd)
    return {"sha256 + inflate": inflating, "raw writes": time.perf_counter() - began}


def contents(layer: bytes) -> Iterator[bytes]:
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        for info in tar:
            file = tar.extractfile(info) if info.isreg() else None
            if file is not None:
                yield file.read()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mb", type=int, default=70)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    options.add_argument("--how", choices=["gzip", "zstd"], default="gzip")
    asked = options.parse_args()
    layers = [large_layer(asked.mb), small_layer()]
    built = image(layers, how=asked.how)
    with tempfile.TemporaryDirectory(dir=asked.dir) as work, registry.running(Path(work)) as server:
        reference = server.push(built, "bench", "1")
        lowest = floors(built, asked.how, layers, Path(work, "raw"))
        seconds = Peers(reference, Path(work)).measure(asked.rounds)
    ours = statistics.median(seconds["zlayer"])
    print(
        f"{sum(map(len, built.blobs.values())) / 1e6:.0f} MB {asked.how}, {sum(map(len, layers)) / 1e6:.0f} MB unpacked, in {asked.dir}, load {os.getloadavg()[0]:.1f}"
    )
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f"{name:16} median {median:6.2f} s  min {min(taken):6.2f} s  {median / ours:5.2f} x ours")
    print(
        json.dumps({name: round(value, 3) for name, value in lowest.items()}),
        f"ours / slower floor {ours / max(lowest.values()):.2f}",
    )


if __name__ == "__main__":
    main()
