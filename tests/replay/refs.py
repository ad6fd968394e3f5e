"""Image references: their parts or what is wrong with them, canonical form, cache keys and directory name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.replay.outcome import Outcome
from tests.replay.twins import TWINS
from tests.replay.words import Json, Row
from zlayer_driver.errors import InvalidReference

_FAULTS = {
    "it is empty": "ReferenceInvalidFormat",
    "not of the form": "ReferenceInvalidFormat",
    "longer than 255": "NameTooLong",
    "is not supported": "DigestUnsupported",
    "hex digits": "DigestInvalidLength",
}
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
        "fault": row["parse"].get("err"),
        "canonical": row["canonical"],
        "keys": (keys["manifest"], keys["digest"], keys["orig"]),
    }


def _observed(twin: Any, ref: str) -> Json:
    parts = fault = None
    try:
        parts = tuple(twin.parse(ref))
    except InvalidReference as error:
        fault = next((name for words, name in _FAULTS.items() if words in error.reason), error.reason)
    return {"sanitize": twin.sanitize(ref), "parts": parts, "fault": fault, "canonical": twin.canonical(ref), "keys": twin.cache_keys(ref)}
