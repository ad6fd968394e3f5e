"""The originals in Rust and Go, built once a run from their registries and called through ctypes, round by round beside ours."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def build(target: Path) -> Path:
    """A folder with what could be built. Needs cargo, go and their registries; takes minutes the first time."""
    if not (target / "libpeers.so").exists():
        subprocess.run([HERE / "build", target], check=True)
    return target


class Rust:
    """Each round is one pass over the lines, in seconds."""

    def __init__(self, folder: Path) -> None:
        self._library = ctypes.CDLL(str(folder / "libpeers.so"))
        for name in ("lines", "redb4_keep"):
            getattr(self._library, name).restype = ctypes.c_void_p
        for name in ("canonical_round", "sanitize_round", "redb4_get_round", "redb4_open_round", "rusqlite_round"):
            getattr(self._library, name).restype = ctypes.c_uint64

    def lines(self, lines: Iterable[str]) -> Any:
        return ctypes.c_void_p(self._library.lines("\n".join(lines).encode()))

    def round(self, name: str, *given: Any) -> float:
        elapsed_ns: int = getattr(self._library, name)(*given)
        return elapsed_ns / 1e9

    def write_redb(self, path: Path, version: int, count: int, value_bytes: int) -> None:
        """``count`` keys of images, by the crate's version 2 or 4."""
        self._library.redb_write(str(path).encode(), version, ctypes.c_uint64(count), ctypes.c_uint64(value_bytes))

    def keep_redb(self, path: Path) -> Any:
        """A database of redb 4 with an open read transaction."""
        return ctypes.c_void_p(self._library.redb4_keep(str(path).encode()))


class Go:
    def __init__(self, folder: Path, lines: Iterable[str]) -> None:
        self._library = ctypes.CDLL(str(folder / "libgopeers.so"))
        self._library.GoCanonicalRound.restype = ctypes.c_int64
        self._library.GoLines("\n".join(lines).encode())

    def canonical_round(self) -> float:
        elapsed_ns: int = self._library.GoCanonicalRound()
        return elapsed_ns / 1e9
