"""An image's files as people look at them: a read-only overlay of its layers at a directory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from zlayer_driver.errors import ConfigError
from zlayer_driver.host import mounts
from zlayer_driver.image.store import ImageStore


def mount_image(store: ImageStore, image: str, directory: Path) -> Path:
    """Mounts an image at an empty directory, made where it is missing. One that shows the image already stays as it is."""
    with _told(directory), store.hold():
        layers = store.get(image).layers
        if not layers:
            raise ConfigError(f"image {image!r} has no layers, so there is nothing to show")
        target = directory.absolute()
        target.mkdir(parents=True, exist_ok=True)
        target = target.resolve()
        there = mounts.overlay_at(target)
        if there is not None and _is_all(there, layers) and store.shown(there) == layers:
            return target
        if there is not None or target.is_mount() or any(target.iterdir()):
            raise ConfigError(f"{str(directory)!r} is in use: it is a mount or has files", hint="give an empty directory")
        mounts.overlay_read_only(target, layers)
    return target


def unmount_image(store: ImageStore, directory: Path) -> bool:
    """Undoes `mount_image`; the directory stays. False where nothing was mounted; something else than an image is `ConfigError`."""
    with _told(directory):
        target = directory.resolve()
        there = mounts.overlay_at(target)
        if there is None and not target.is_mount():
            return False
        if there is None or not _is_all(there, store.shown(there)):
            raise ConfigError(f"what is mounted at {str(directory)!r} is no image of this state directory", hint="use umount(8)")
        mounts.unmount(target)
        return True


def _is_all(there: mounts.Overlay, shown: Sequence[Path]) -> bool:
    """Whether a mount shows these layers and nothing else but the place itself."""
    return 0 < len(shown) == len(there.lower) - 1


@contextmanager
def _told(directory: Path) -> Iterator[None]:
    if os.geteuid() != 0:
        raise ConfigError("mounting an image needs root", hint="run it as root")
    try:
        yield
    except OSError as error:
        fault = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        raise ConfigError(f"cannot mount or unmount at {str(directory)!r}: {fault}") from error
