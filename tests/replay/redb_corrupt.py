"""Damaged redb files: their last whole commit, or one ordinary error; both twins say the same.

Where the crate serves a page that does not have its checksum, this project has an error or lacks the blob (D5). Where the crate gives up or
panics over a file whose last commit is whole, the commit is as good an answer as an error.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from tests.replay import redb
from tests.replay.outcome import Outcome, Verdict
from tests.replay.twins import TWINS, stored
from tests.replay.words import Json, Row
from zlayer_driver.errors import CacheError

NAME, FILE = "redb-corrupt", "redb-corrupt.jsonl.gz"
Listing = dict[str, str | None] | CacheError


def replay(root: Path, rows: Iterable[Row]) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory() as scratch:
        base = lru_cache(4)(lambda name: stored(root / name))
        whole = lru_cache(32)(lambda name: _listing(TWINS[0], Path(scratch, "base.redb"), base(name)))
        for row in rows:
            raw = patched(base(row["base"]), row["patches"])
            if (len(raw), hashlib.sha256(raw).hexdigest()) != (row["size"], row["sha256"]):
                yield Outcome(row["case"], "failed", "the patches do not make the recorded file")
                continue
            found = [_listing(twin, Path(scratch, "blobs.redb"), raw) for twin in TWINS]
            yield _judged(row, found, whole(row["base"]))


def patched(base: bytes, patches: Json) -> bytes:
    raw = bytearray(base)
    for patch in patches:
        offset, data = patch.get("offset", 0), bytes.fromhex(patch.get("hex", ""))
        match patch["op"]:
            case "xor":
                raw[offset : offset + len(data)] = bytes(a ^ b for a, b in zip(raw[offset:], data, strict=False))
            case "set":
                raw[offset : offset + len(data)] = data
            case "truncate":
                del raw[patch["size"] :]
            case "append_zeros":
                raw += bytes(patch["n"])
    return bytes(raw)


def _listing(twin: object, file: Path, raw: bytes) -> Listing:
    file.write_bytes(raw)
    return redb.listing(twin, file)


def _judged(row: Row, found: list[Listing], whole: Listing) -> Outcome:
    first, *others = found
    if any(repr(other) != repr(first) for other in others):
        return Outcome(row["case"], "failed", f"the twins differ: {first}, {others}")
    verdict = _verdict(row, first, whole)
    return Outcome(row["case"], verdict, f"recorded {row['expect']}, observed {first}" if verdict == "failed" else "")


def _verdict(row: Row, found: Listing, whole: Listing) -> Verdict:
    answer = row["expect"]
    if "same_as_base" not in answer and "ok" not in answer:
        return "passed" if isinstance(found, CacheError) or found == whole else "failed"
    recorded = whole if "same_as_base" in answer else _shown(redb.expected(answer))
    if found == recorded or (isinstance(found, CacheError) and (isinstance(recorded, CacheError) or not recorded)):
        return "passed"
    if row["strict_reader"] != "error":
        return "failed"
    served = {} if isinstance(found, CacheError) else {key: digest for key, digest in found.items() if digest is not None}
    return "D5" if not isinstance(recorded, CacheError) and served.items() <= (recorded or {}).items() else "failed"


def _shown(recorded: dict[str, str] | None) -> dict[str, str | None] | None:
    if recorded is None:
        return None
    return {key: None if redb.withheld(key, digest) else digest for key, digest in recorded.items()}
