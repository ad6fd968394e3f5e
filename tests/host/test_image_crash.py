"""A store whose processes are killed: whatever is there afterwards is whole, and the rest is collected."""

from __future__ import annotations

import asyncio
import gzip
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.doubles.images import Built, archive, directory, image, member
from zlayer_driver.errors import CacheError, PullFailed
from zlayer_driver.image.store import ImageStore
from zlayer_driver.model import PullProgress

pytestmark = pytest.mark.needs("root", "linux")

ROUNDS = 8
IMPORT = """
import asyncio, sys
from pathlib import Path
from zlayer_driver.image.store import ImageStore

async def main():
    await ImageStore(Path(sys.argv[1])).import_archive(sys.argv[2], report=lambda step: print(step.phase, flush=True))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def built() -> Built:
    """Three layers whose files take a while: their content does not compress."""
    noise = random.Random(1)
    files = [[member(f"d{n}/{number}", noise.randbytes(4000)) for number in range(400)] for n in range(3)]
    return image([archive(directory(f"d{n}"), *members) for n, members in enumerate(files)])


@pytest.fixture
def layout(built: Built, tmp_path: Path) -> Path:
    return built.layout(tmp_path / "app")


def start(root: Path, layout: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", IMPORT, root, f"oci:{layout}"], stdout=subprocess.PIPE, text=True)


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    return iter(process.stdout.readline, "")


def whole(root: Path) -> None:
    """Every layer of the store has all its files."""
    for layer in (root / "l").iterdir():
        (files,) = layer.iterdir()
        assert len(list(files.iterdir())) == 400
        assert all(file.stat().st_size == 4000 for file in files.iterdir())


async def test_killed_at_any_step(layout: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    for steps in range(ROUNDS):
        with start(root, layout) as process:
            for step, _ in zip(range(steps), lines(process), strict=False):
                assert step < ROUNDS
            process.send_signal(signal.SIGKILL)
        if not root.exists():
            continue
        store = ImageStore(root)
        whole(root)
        imported = await store.import_archive(f"oci:{layout}")
        whole(root)
        assert len(imported.layers) == 3
        assert list((root / "t").iterdir()) == []
        await store.remove(imported.reference)
        assert list((root / "l").iterdir()) == []
        await store.close()


async def test_a_live_process_is_not_swept_away(layout: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    with start(root, layout) as process:
        assert next(lines(process)) == "download\n"
        store = ImageStore(root)
        await store.prune()
        await store.import_archive(f"oci:{layout}", "localhost/other:1")
        await store.prune()
        assert list(lines(process))[-1] == "done\n"
        assert process.wait() == 0
    assert [record.reference for record in store.list()] == ["localhost/app:latest", "localhost/other:1"]
    whole(root)
    await store.close()


async def test_a_cancelled_import_leaves_nothing(layout: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    store = ImageStore(root)
    downloading = asyncio.Event()

    def report(step: PullProgress) -> None:
        if step.phase == "download":
            downloading.set()

    task = asyncio.create_task(store.import_archive(f"oci:{layout}", report=report))
    await downloading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list((root / "t").iterdir()) == []
    assert store.list() == []
    whole(root)
    await store.close()


async def test_a_power_cut_costs_only_what_may_not_be_on_the_disk(layout: Path, tmp_path: Path) -> None:
    """The next boot is known by its id: marks of another one are what a power cut leaves."""
    root = tmp_path / "images"

    def boot() -> ImageStore:
        for mark in (root / "u").iterdir():
            mark.rename(mark.with_suffix(".earlier"))
        return ImageStore(root)

    store = ImageStore(root)
    await store.import_archive(f"oci:{layout}")
    await store.close()
    store = boot()
    assert store.list() == []
    assert [list((root / name).iterdir()) for name in "ltu"] == [[], [], []]
    await store.import_archive(f"oci:{layout}")
    await store.settle()
    await store.close()
    store = boot()
    assert len(store.list()) == 1
    whole(root)
    await store.close()


def spoil_header(cache: Path) -> None:
    cache.write_bytes(b"no database" + cache.read_bytes()[11:])


def spoil_pages(cache: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:4096] + b"\xff" * (cache.stat().st_size - 4096))


@pytest.mark.parametrize("spoil", [spoil_header, spoil_pages])
async def test_a_damaged_cache_is_told_of_once_and_replaced(layout: Path, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    store = ImageStore(tmp_path / "images")
    imported = await store.import_archive(f"oci:{layout}")
    await store.close()
    spoil(store.cache_path)
    with pytest.raises(CacheError, match=r"is damaged .*pulled again") as failure:
        store.get(imported.reference)
    assert failure.value.recoverable
    assert store.list() == []
    made = [layer.stat().st_ino for layer in imported.layers]
    again = await store.import_archive(f"oci:{layout}")
    assert [layer.stat().st_ino for layer in again.layers] == made
    assert len(list(store.cache_path.parent.glob("blobs.sqlite.damaged-*"))) == 1
    await store.close()


async def run(*argv: str | Path) -> None:
    await (await asyncio.create_subprocess_exec(*argv)).wait()


@pytest.mark.needs("mount")
async def test_a_full_disk_is_a_clear_error_and_harms_nothing(layout: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    await run("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk)
    try:
        store = ImageStore(disk / "images")
        with pytest.raises(PullFailed, match="No space left on device: make room"):
            await store.import_archive(f"oci:{layout}")
        assert store.list() == []
        assert list((disk / "images/t").iterdir()) == []
        await store.close()
    finally:
        await run("umount", disk)


@pytest.mark.needs("mount")
async def test_an_archive_is_unpacked_where_there_is_room_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "app.tar.gz"
    packed.write_bytes(gzip.compress(bytes(4 << 20)))
    disk = tmp_path / "disk"
    disk.mkdir()
    monkeypatch.setenv("TMPDIR", str(disk))
    store = ImageStore(tmp_path / "images")
    await run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk)
    try:
        with pytest.raises(PullFailed, match="No space left on device: make room") as failure:
            await store.import_archive(f"oci-archive:{packed}")
        assert failure.value.recoverable
    finally:
        await run("umount", disk)
        await store.close()


def test_launch_does_not_pay_for_what_pulls_need() -> None:
    program = "import sys, zlayer_driver.image.store; print(*sorted({'httpx2', 'isal', 'zstandard', 'sqlite3'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert loaded.stdout.split() in ([], ["sqlite3"])
