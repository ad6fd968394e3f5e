"""The disk that a guest has its image on."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.errors import CreateFailed
from zlayer_driver.image.values import Image


def disk_of(root: Path, digest: str) -> Path:
    return root / "disks" / f"{digest.removeprefix('sha256:')}.erofs"


def make_disk(image: Image, bundle: Bundle) -> None:
    """The image as a read-only block image, once for all its containers; whoever comes second waits for the first."""
    disk = disk_of(bundle.root, image.digest)
    disk.parent.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(disk.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if disk.exists():
            return
        half = disk.with_suffix(".half")
        half.unlink(missing_ok=True)
        command = ["mkfs.erofs", "-T0", "--quiet", str(half), str(bundle.rootfs)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode != 0:
            raise CreateFailed(bundle.id, f"its image cannot be made into a disk: {done.stderr.decode('utf-8', 'replace').strip()}")
        half.rename(disk)
    finally:
        os.close(lock)
