"""Which recordings of local stores a deviation may apply to: an independent, naive look at what the reference read.

D5: the answer came from outside the store, from a blob that is not what its name says, or from a spill file that two names share.
D9: a document is no plain object of plain values, so that a miss is as good.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from zlayer_driver.fastpath import canonical, sanitize

_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_MAX_DEPTH = 127


class Read(NamedTuple):
    """What the reference reads under a key: a spill file shadows a row."""

    row: bytes | None
    spilled: bytes | None

    @property
    def used(self) -> bytes | None:
        return self.row if self.spilled is None else self.spilled


def outside(image: str) -> bool:
    return sanitize(image) in {"", ".", ".."} or "\0" in image


def unproven(cache: Path, image: str) -> bool:
    """D5: a spilled manifest shadows another name's or has no row; or the config is not what its digest says."""
    manifest = _read(cache, f"manifest:{canonical(image)}")
    if manifest.spilled is not None and manifest.row != b"":
        return True
    digest = _config_digest(manifest.used)
    if digest is None:
        return False
    config = _read(cache, digest).used
    return config is not None and (not _DIGEST.fullmatch(digest) or f"sha256:{hashlib.sha256(config).hexdigest()}" != digest)


def own_facts(cache: Path, image: str) -> tuple[str | None, str | None, str | None]:
    """What the store says under the image's own name: rows before spill files, and only blobs that hash to their name."""
    raw = _read(cache, f"manifest:{canonical(image)}").row
    manifest = _object(raw)
    digest = _config_digest(raw)
    marker = (manifest.get("annotations") or {}).get("com.zlayer.runtime")
    if digest is None or not _DIGEST.fullmatch(digest):
        return None, marker, None
    blobs = [blob for blob in _read(cache, digest) if blob is not None and f"sha256:{hashlib.sha256(blob).hexdigest()}" == digest]
    config = _object(blobs[0] if blobs else None)
    return config.get("os"), marker, ((config.get("config") or {}).get("Labels") or {}).get("com.zlayer.isolation")


def odd_documents(cache: Path, image: str) -> bool:
    manifest = _read(cache, f"manifest:{canonical(image)}").used
    digest = _config_digest(manifest)
    config = _read(cache, digest).used if digest is not None else None
    return any(raw is not None and not _is_plain(raw) for raw in (manifest, config))


def _read(cache: Path, key: str) -> Read:
    spill = cache.with_name(f"{cache.stem}.blobs") / key.replace(":", "_").replace("/", "_")
    row = None
    try:
        with closing(sqlite3.connect(f"{cache.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            found = database.execute("SELECT data FROM blobs WHERE digest = ?", (key,)).fetchone()
            row = found[0] if found and isinstance(found[0], bytes) else None
    except sqlite3.Error:
        pass
    return Read(row, spill.read_bytes() if spill.is_file() else None)


def _object(raw: bytes | None) -> dict[str, Any]:
    try:
        value = json.loads(raw or b"")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _config_digest(raw: bytes | None) -> str | None:
    """The config's digest, also where manifest or descriptor are written as arrays."""
    try:
        value = json.loads(raw or b"")
        config = value["config"] if isinstance(value, dict) else value[2]
        digest = config["digest"] if isinstance(config, dict) else config[1]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    return digest if isinstance(digest, str) else None


def _is_plain(raw: bytes) -> bool:
    """An object all through: none of its structures is an array, nothing is repeated, and a strict parser takes every value."""
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unrepeated)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    structures = [value, *(value[key] for key in ("config", "subject") if isinstance(value, dict) and value.get(key) is not None)]
    return _depth(value) <= _MAX_DEPTH and all(isinstance(structure, dict) for structure in structures)


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _depth(value: Any) -> int:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if below is None else 1 + max(map(_depth, below), default=0)
