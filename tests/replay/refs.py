"""Image references: their parts, canonical form, cache keys and directory name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.replay.outcome import Outcome
from tests.replay.twins import TWINS
from tests.replay.words import Json, Row
from zlayer_driver.errors import InvalidReference

NAME, FILE = "refs", "refs.jsonl.gz"


def replay(root: Path, rows: Iterable[Row]) -> Iterator[Outcome]:
    for row in rows:
        recorded = _recorded(row)
        wrong = [
            f"{twin.__name__}: recorded {recorded}, observed {seen}" for twin in TWINS if (seen := _observed(twin, row["ref"])) != recorded
        ]
        yield Outcome(row["case"], "failed" if wrong else "passed", "\n".join(wrong))


def _recorded(row: Row) -> Json:
    parts, keys = row["parse"].get("ok"), row["keys"]
    return {
        "sanitize": row["sanitize"],
        "parts": parts and tuple(parts[name] for name in ("registry", "repository", "tag", "digest")),
        "canonical": row["canonical"],
        "keys": (keys["manifest"], keys["digest"], keys["orig"]),
    }


def _observed(twin: Any, ref: str) -> Json:
    try:
        parts = tuple(twin.parse(ref))
    except InvalidReference:
        parts = None
    return {"sanitize": twin.sanitize(ref), "parts": parts, "canonical": twin.canonical(ref), "keys": twin.cache_keys(ref)}
