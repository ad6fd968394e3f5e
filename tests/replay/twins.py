"""Both implementations of the hot path, which every recording is played to; and files that may lie compressed."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any, Final

from zlayer_driver import _fastpath, _fastpath_py

TWINS: Final[tuple[Any, ...]] = (_fastpath, _fastpath_py)


def stored(path: Path) -> bytes:
    """A data file, or its ``.xz``."""
    return path.read_bytes() if path.exists() else lzma.decompress(path.with_name(f"{path.name}.xz").read_bytes())
