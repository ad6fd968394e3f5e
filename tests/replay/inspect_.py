"""What local stores say of images: every fixture as a whole, and each of its caches alone. No file may change."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.replay import odd_stores
from tests.replay.outcome import Outcome, Verdict
from tests.replay.twins import TWINS
from tests.replay.words import Json, Row
from zlayer_driver.errors import CacheError

NAME, FILE = "inspect", "inspect.jsonl.gz"
_FACTS = ("os", "marker", "isolation")
Facts = tuple[str | None, ...]


def replay(root: Path, rows: Iterable[Row]) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory() as scratch:
        prepared = cache(lambda name: _prepared(root / name, Path(scratch, hashlib.sha256(name.encode()).hexdigest())))
        for row in rows:
            fixture, digest = prepared(row["fixture"])
            outcome = _judged(row, fixture)
            changed = _digest(fixture) != digest
            yield Outcome(row["case"], "failed", "the inspection changed a file") if changed else outcome


def _prepared(source: Path, fixture: Path) -> tuple[Path, str]:
    """A copy with its empty folders, which the recordings list in a file."""
    shutil.copytree(source, fixture)
    for path in [fixture, *fixture.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)
    listed = fixture / ".mkdir"
    if listed.exists():
        for name in listed.read_text().splitlines():
            (fixture / name).mkdir(parents=True, exist_ok=True)
        listed.unlink()
    return fixture, _digest(fixture)


def _digest(fixture: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(fixture.rglob("*")):
        found.update(f"{path} {path.stat().st_mtime_ns}\n".encode())
        if path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


def _judged(row: Row, fixture: Path) -> Outcome:
    verdicts: set[Verdict] = set()
    for caches, recorded in _questions(row):
        paths = [fixture / name for name in caches]
        for twin in TWINS:
            observed = _observed(twin, row["image"], paths, alone="per_cache" in recorded)
            verdict = _verdict(row["image"], paths, recorded["facts"], observed)
            if verdict == "failed":
                return Outcome(row["case"], "failed", f"{twin.__name__} {caches}: recorded {recorded['facts']}, observed {observed}")
            verdicts.add(verdict)
    return Outcome(row["case"], max(verdicts - {"passed"}, default="passed"))


def _questions(row: Row) -> Iterator[tuple[list[str], dict[str, Json]]]:
    yield row["caches"], {"facts": _facts(row["composite"])}
    for one in row["per_cache"]:
        yield [one["path"]], {"facts": _facts(one if one["open"] == "ok" else {}), "per_cache": True}


def _facts(answers: Json) -> Facts:
    """A recorded error is a fact that is not known."""
    return tuple((answers.get(name) or {}).get("ok") for name in _FACTS)


def _observed(twin: Any, image: str, paths: list[Path], *, alone: bool) -> Facts:
    if not alone:
        found = twin.image_facts(image, paths)
        return found.os, found.marker, found.isolation
    try:
        with twin.BlobCache(paths[0]) as opened:
            found = opened.facts(image)
    except CacheError:
        return None, None, None
    return found.os, found.marker, found.isolation


def _verdict(image: str, paths: list[Path], recorded: Facts, observed: Facts) -> Verdict:
    if observed == recorded:
        return "passed"
    if odd_stores.outside(image) and observed[0] in {None, recorded[0]}:
        return "D5"
    if any(odd_stores.unproven(path, image) for path in paths):
        own = [odd_stores.own_facts(path, image) for path in paths]
        if all(fact is None or fact in {facts[i] for facts in own} for i, fact in enumerate(observed)):
            return "D5"
    missed = all(fact in {None, recorded[i]} for i, fact in enumerate(observed))
    return "D9" if missed and any(odd_stores.odd_documents(path, image) for path in paths) else "failed"
