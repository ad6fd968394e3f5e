"""Every recording of references, stores and redb files; of the damaged files those whose base is small, as the readable twin is slow."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from tests.replay import inspect_, redb, redb_corrupt, refs
from tests.replay.__main__ import rows

VECTORS = Path(__file__).parents[1] / "data" / "vectors"
SMALL_BYTES = 160_000


@pytest.mark.parametrize("data_set", [refs, inspect_, redb], ids=lambda module: module.NAME)
def test_recordings(data_set: ModuleType) -> None:
    outcomes = list(data_set.replay(VECTORS, rows(VECTORS / data_set.FILE)))
    assert [outcome for outcome in outcomes if outcome.verdict == "failed"] == []
    assert len(outcomes) > len([outcome for outcome in outcomes if outcome.verdict != "passed"]) * 10


def test_damaged_files() -> None:
    small = [row for row in rows(VECTORS / redb_corrupt.FILE) if row["size"] < SMALL_BYTES]
    verdicts = Counter(outcome.verdict for outcome in redb_corrupt.replay(VECTORS, small))
    assert verdicts["failed"] == 0
    assert verdicts["passed"] > 10 * verdicts["D5"]
