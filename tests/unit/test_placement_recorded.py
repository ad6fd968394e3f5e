"""Recorded dispatches of the reference as job lines: each goes where it went."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

from zlayer_driver.choice import NodeShape
from zlayer_driver.fastpath import JobLines, canonical
from zlayer_driver.model import OS, ImageFacts, Target
from zlayer_driver.nomad.placement import Decider

ROWS = Path(__file__).parents[1] / "data" / "vectors" / "dispatch.jsonl.gz"


def _facts(row: dict[str, Any]) -> ImageFacts:
    facts = row["facts"]
    return ImageFacts(OS(facts["os"]) if facts["os"] in {*OS} else None, facts["marker"], facts["isolation"])


def _told(answer: dict[str, Any]) -> str:
    return str(answer["target"] if "target" in answer else answer["error"]["kind"])


def test_recorded_dispatches_as_job_lines() -> None:
    differing, seen = Counter[str](), 0
    with gzip.open(ROWS, "rt") as rows:
        for row in map(json.loads, rows):
            if "facts" not in row or "pull_trace" in row:
                continue
            shape = NodeShape(OS.DARWIN, frozenset(map(Target, row["attached"])))
            decider = Decider(shape, {canonical(row["spec"]["image"]): _facts(row)}.__getitem__)
            lines = JobLines(decider.tell, decider.know)
            line = json.dumps({"id": row["case"], **row["spec"]}).encode()
            answer = json.loads(lines.answer(line, 1))
            wanted = row["target"] or row["result"]["err"]["kind"]
            differing[f"{wanted} -> {_told(answer)}"] += _told(answer) != wanted
            seen += 1
    assert seen > 5000
    assert not +differing
