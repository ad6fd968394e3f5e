"""The recordings hold, and the replay would notice if they did not."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.replay import deviations
from tests.replay.__main__ import SETS, main, replay, rows
from tests.replay.outcome import Verdict
from tests.replay.words import Json, Row

VECTORS = Path(__file__).parents[1] / "data" / "vectors"
SAMPLED = 40  # rows of a set, evenly spread, each with every recorded value altered in turn
RECORDED: Mapping[str, Sequence[str]] = {
    "dispatch": ("target", "result", "trace", "pull_result", "pull_trace", "facts_for_pulled", "facts_for_created"),
    "fallback": ("steps",),
    "pull": ("result", "trace", "facts_after", "connections", "registry_contacted", "steps"),
    "lifecycle": ("result", "trace", "dispatch_after", "steps"),
}
ASKED = {"call", "cache_state"}  # parts of a step that are the question, not the answer
Path_ = tuple[str | int, ...]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", SETS)
def test_recordings_hold(module: str) -> None:
    tally = replay(VECTORS, module)
    assert not tally.problem
    assert not tally.failed, str(tally)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", RECORDED)
def test_altered_recordings_fail(module: str) -> None:
    data_set: Any = import_module(f"tests.replay.{module}")
    altered = list(_altered(_sample(VECTORS / data_set.FILE), RECORDED[module]))
    outcomes = list(data_set.replay(VECTORS, altered))
    unnoticed = [row for row, outcome in zip(altered, outcomes, strict=True) if outcome.verdict != "failed"]
    assert altered
    assert not unnoticed, json.dumps(unnoticed[0])


def _other_name(row: Json) -> bool:
    row["canonical"] += "x"
    return True


def _other_system(row: Json) -> bool:
    known = row["composite"]["os"].get("ok") is not None
    row["composite"]["os"] = {"ok": "plan9"}
    return known


def _one_key_more(row: Json) -> bool:
    """Not where a file's damage, or another type of table, makes an error as good an answer as a listing."""
    if row.get("strict_reader") == "error" or "ok" not in row["expect"] or "table_error" in row["expect"]["ok"].get("blob_data", {}):
        return False
    row["expect"]["ok"].setdefault("blob_data", {})["manifest:never-written"] = "00" * 32
    return True


@pytest.mark.parametrize(
    ("module", "alter"), [("refs", _other_name), ("inspect_", _other_system), ("redb", _one_key_more), ("redb_corrupt", _one_key_more)]
)
def test_altered_stores_and_names_fail(module: str, alter: Callable[[Json], bool]) -> None:
    data_set: Any = import_module(f"tests.replay.{module}")
    sample = _sample(VECTORS / data_set.FILE)
    passed = [row for row, outcome in zip(sample, data_set.replay(VECTORS, sample), strict=True) if outcome.verdict == "passed"]
    altered = [row for row in copy.deepcopy(passed) if alter(row)]
    outcomes = list(data_set.replay(VECTORS, altered))
    unnoticed = [row for row, outcome in zip(altered, outcomes, strict=True) if outcome.verdict != "failed"]
    assert altered
    assert not unnoticed, json.dumps(unnoticed[0])


def test_every_deviation_is_documented() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "behaviour.md").read_text()
    for name in (verdict for verdict in get_args(Verdict) if verdict.startswith("D")):
        assert f"\n| {name} | " in documented
        assert f"\n{name} " in (deviations.__doc__ or "")


def test_missing_empty_and_failing_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "dispatch: cannot be read" in capsys.readouterr().out
    row = next(rows(VECTORS / "dispatch.jsonl.gz"))
    row["target"] = "vz_linux"
    (tmp_path / "dispatch.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    (tmp_path / "pull.jsonl.gz").write_bytes(gzip.compress(b""))
    assert main([str(tmp_path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["dispatch"]["failed"], told["dispatch"]["failures"][0]["case"]) == (1, row["case"])
    assert told["pull"]["problem"] == "is empty"


def _sample(path: Path) -> list[dict[str, Json]]:
    every = list(rows(path))
    return every[:: max(1, len(every) // SAMPLED)] + list(islice((row for row in every if "steps" in row), SAMPLED // 4))


def _altered(sample: Sequence[Row], keys: Sequence[str]) -> Iterator[Row]:
    for row in sample:
        for path in _leaves({key: row[key] for key in keys if key in row}, ()):
            if ASKED.isdisjoint(path):
                other = copy.deepcopy(row)
                _set(other, path)
                yield other


def _leaves(value: Json, path: Path_) -> Iterator[Path_]:
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    for key, item in items:
        yield from _leaves(item, (*path, key))
    if not items:
        yield path


def _set(row: Json, path: Path_) -> None:
    *parents, last = path
    for key in parents:
        row = row[key]
    match row[last]:
        case bool(value):
            row[last] = not value
        case int(value):
            row[last] = value + 41
        case str(value):
            row[last] = f"{value}x"
        case []:
            row[last] = [{}]
        case _:
            row[last] = {"web-rep-9": "primary"}
