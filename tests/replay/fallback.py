"""Creates that fail: who tries next, what is told, and which records stay."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.replay import deviations
from tests.replay.calls import dispatch_told, make
from tests.replay.judge import Observed, verdict
from tests.replay.outcome import Outcome
from tests.replay.recorder import recorders
from tests.replay.words import Json, Row, error_told, facts_of, task_id
from zlayer_driver.composite import Composite
from zlayer_driver.errors import DriverError
from zlayer_driver.model import OS, ImageFacts

NAME, FILE = "fallback", "fallback.jsonl.gz"


def replay(root: Path, rows: Iterable[Row]) -> Iterator[Outcome]:
    with asyncio.Runner() as runner:
        for recorded_row in rows:
            row = {**recorded_row, "program": recorded_row.get("program") or _inferred(recorded_row)}
            recorded = {"steps": [_recorded(step) for step in row["steps"]]}
            yield verdict(runner, row, recorded, _play(row), deviations.OF_FALLBACK)


def _recorded(step: Row) -> Observed:
    return {"result": step["result"], "trace": step["trace"], "dispatch_after": step["dispatch_after"], "cause": None}


def _inferred(row: Row) -> Json:
    """The program of a row that tells none: each call of its trace but a step's last failed."""
    program: dict[str, dict[str, list[Json]]] = defaultdict(lambda: defaultdict(list))
    for step in row["steps"]:
        last = len(step["trace"]) - 1
        for number, call in enumerate(step["trace"]):
            error = {"kind": "CreateFailed", "text": call["rt"]} if number < last else step["result"].get("err")
            item = {"err": {"text": error.get("reason"), **error}} if error else step["result"]
            program[call["rt"]][call["m"]].append(item)
    return program


async def _play(row: Row) -> Observed:
    trace: list[Json] = []
    facts = {image: facts_of(known) for image, known in row["facts"].items()}
    composite = Composite(
        recorders(row["attached"], row["program"], trace), native_os=OS.DARWIN, facts=lambda image: facts.get(image, ImageFacts())
    )
    steps = []
    for step in row["steps"]:
        call = step["call"]
        made = await make(composite, call["m"], task_id(call.get("id") or row["id"]), call["args"])
        cause = made.error.__cause__ if made.error else None
        steps.append(
            {
                "result": made.result,
                "trace": list(trace),
                "dispatch_after": dispatch_told(composite),
                "cause": error_told(cause, "") if isinstance(cause, DriverError) else None,
            }
        )
        trace.clear()
    return {"steps": steps}
