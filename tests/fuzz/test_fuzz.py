"""A short, repeatable pass over every fuzz target."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from tests.fuzz.mutation import mutations
from tests.fuzz.targets import TARGETS

INPUTS = {"references": 4000, "documents": 400, "job_lines": 600, "sqlite_pages": 250, "redb_pages": 120}


@pytest.mark.parametrize("name", TARGETS)
def test_the_twins_agree_on_mutants(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    for data in islice(mutations(target.seeds(), seed=1), INPUTS[name]):
        target.run(data, tmp_path)
