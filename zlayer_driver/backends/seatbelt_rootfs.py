"""The root file system of a container without mounts: clones of its image's layers in one directory, and links for what it mounts."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from zlayer_driver.backends.tool import Tool
from zlayer_driver.errors import CreateFailed, InvalidSpec
from zlayer_driver.image.merged import is_opaque, is_whiteout
from zlayer_driver.model import Mount

_CP = Tool("cp", hint="it is a part of macOS: put /bin on the PATH")


async def clone(layers: Sequence[Path], rootfs: Path) -> None:
    """Bottom first. Where a layer has a directory, the clone has none but a real one, so that no link of an image leads a copy out of it."""
    await asyncio.to_thread(rootfs.mkdir)
    for layer in layers:
        whiteouts = await asyncio.to_thread(_make_way, layer, rootfs)
        await _CP.ask(
            "-c", "-R", "-p", f"{layer}/.", str(rootfs), failed=lambda reason: CreateFailed(rootfs.parent.name, reason), timeout_s=0
        )
        await asyncio.to_thread(_remove_each, [rootfs / path for path in whiteouts])


def _make_way(layer: Path, rootfs: Path) -> list[Path]:
    """Removes what the layer hides or has another kind of file for; gives its whiteouts, which are no files of the image's."""
    whiteouts = []
    for path, is_directory in _entries(layer):
        shown, target = layer / path, rootfs / path
        if is_whiteout(shown.lstat()):
            whiteouts.append(path)
        stays = is_directory and target.is_dir() and not target.is_symlink() and not is_opaque(shown)
        if not stays:
            _remove_each([target])
    return whiteouts


def _entries(layer: Path) -> Iterator[tuple[Path, bool]]:
    """Paths below a layer, parents first, and whether each is a directory."""
    for directory, folders, files in os.walk(layer):
        below = Path(directory).relative_to(layer)
        yield from ((below / name, not Path(directory, name).is_symlink()) for name in folders)
        yield from ((below / name, False) for name in files)


def _remove_each(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def place(rootfs: Path, mounts: Sequence[Mount]) -> None:
    """Makes each mount's target a link to its source, in place of what the image has there; `InvalidSpec` for one below a link."""
    for mount in mounts:
        parts = Path(mount.target).relative_to("/").parts
        if not parts or ".." in parts or not Path(mount.source).exists():
            raise InvalidSpec(f"mount {mount.target!r} of {mount.source!r}: both must be absolute paths, and the source be there")
        at = rootfs
        for part in parts[:-1]:
            at /= part
            if at.is_symlink() or (at.exists() and not at.is_dir()):
                raise InvalidSpec(f"mount target {mount.target!r} lies below what is no directory in the image")
            at.mkdir(exist_ok=True)
        _remove_each([at / parts[-1]])
        (at / parts[-1]).symlink_to(mount.source)
