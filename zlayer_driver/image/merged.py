"""What a stack of layer directories shows at a path, as overlayfs would, without mounting it."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

OPAQUE = "trusted.overlay.opaque"  # xattr of a directory that hides what lower layers have in it
Parts = tuple[bytes, ...]


def is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def is_opaque(directory: Path) -> bool:
    try:
        return os.getxattr(directory, OPAQUE, follow_symlinks=False) == b"y"
    except OSError:  # not set, or a file system without it
        return False


def is_directory(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def shown_at(parts: Parts, layers: Sequence[Path]) -> Path | None:
    """The file that layers (bottom first) show at a path none of whose directories is reached through a link."""
    for layer in reversed(layers):
        path, hidden = layer, False
        for number, part in enumerate(parts, 1):
            path /= os.fsdecode(part)
            try:
                info = path.lstat()
            except FileNotFoundError:
                break
            if is_whiteout(info) or (number < len(parts) and not stat.S_ISDIR(info.st_mode)):
                return None
            hidden = hidden or is_opaque(path)
        else:
            return path
        if hidden:
            return None
    return None


def link_at(parts: Parts, layers: Sequence[Path]) -> bytes | None:
    """The target, if what layers show at a path is a symbolic link."""
    path = shown_at(parts, layers)
    return os.fsencode(path.readlink()) if path is not None and path.is_symlink() else None
