"""redb files of all formats: the keys and blobs of their last commit."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.replay.outcome import Outcome
from tests.replay.twins import TWINS, stored
from tests.replay.words import Json, Row
from zlayer_driver.errors import CacheError

NAME, FILE = "redb", "redb.jsonl.gz"
TABLE = "blob_data"


def replay(root: Path, rows: Iterable[Row]) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "blobs.redb")
        for row in rows:
            file.write_bytes(stored(root / row["file"]))
            recorded = expected(row["expect"])
            wrong = [f"{twin.__name__}: {found}" for twin in TWINS if not _agrees(recorded, found := listing(twin, file))]
            yield Outcome(row["case"], "failed" if wrong else "passed", "\n".join(wrong))


def expected(answer: Json) -> dict[str, str] | None:
    """Digests by key; ``None`` where there is no table of blobs."""
    table: dict[str, str] = answer["ok"].get(TABLE, {"table_error": ""})
    return None if "table_error" in table else table


def listing(twin: Any, file: Path) -> dict[str, str | None] | CacheError:
    """Digests by key, ``None`` where the blob cannot be had."""
    try:
        with twin.BlobCache(file) as opened:
            return {key: _digest(opened, key) for key in opened.keys()}  # noqa: SIM118  # a method of the cache, no mapping
    except CacheError as error:
        return error


def _digest(opened: Any, key: str) -> str | None:
    try:
        blob = opened.get(key)
    except CacheError:
        return None
    return None if blob is None else hashlib.sha256(blob).hexdigest()


def withheld(key: str, digest: str) -> bool:
    """Whether a cache keeps a blob to itself: its key is none, or its content is not what the key says, or it is empty."""
    empty = hashlib.sha256(b"").hexdigest()
    return digest == empty or not (key.startswith("manifest:") or key == f"sha256:{digest}") or "\0" in key


def _agrees(recorded: dict[str, str] | None, found: dict[str, str | None] | CacheError) -> bool:
    if recorded is None or isinstance(found, CacheError):
        return recorded is None and isinstance(found, CacheError)
    return found == {key: None if withheld(key, digest) else digest for key, digest in recorded.items()}
