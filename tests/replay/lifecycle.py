"""Everything after a create: calls on the owner, owner-first reads, streams, the overlay, images, secrets and stores."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.replay import deviations
from tests.replay.calls import dispatch_told, make
from tests.replay.judge import Observed, verdict
from tests.replay.outcome import Outcome
from tests.replay.recorder import recorders
from tests.replay.words import Json, Row, task_id
from zlayer_driver.composite import Composite
from zlayer_driver.model import OS, Handle, ImageFacts, Target

NAME, FILE = "lifecycle", "lifecycle.jsonl.gz"
_NOBODY = {"service": "web", "replica": 0}  # rows about the node as a whole name no container


def replay(root: Path, rows: Iterable[Row]) -> Iterator[Outcome]:
    with asyncio.Runner() as runner:
        for row in rows:
            yield verdict(runner, row, _recorded(row), _play(row), deviations.OF_LIFECYCLE)


def _recorded(row: Row) -> Observed:
    if "steps" in row:
        return {"steps": [_recorded(step) for step in row["steps"]]}
    return {key: row[key] for key in ("result", "trace", "dispatch_after") if key in row}


async def _play(row: Row) -> Observed:
    trace: list[Json] = []
    stores = {role: {"image_store_handles": [{"ok": role}]} for role in row.get("handles_on", [])}
    backends = recorders(row["attached"], stores or row["program"], trace)
    composite = Composite(backends, native_os=OS.DARWIN, facts=lambda image: ImageFacts())
    task = task_id(row.get("id", _NOBODY))
    if row.get("owner"):
        target = Target(row["owner"])
        await composite.adopt(Handle(task, target, backends[target].name, {}))
    observed: list[Observed] = []
    for step in row.get("steps", [row]):
        trace.clear()
        made = await make(composite, step["call"]["m"], task, step["call"]["args"])
        told = {"result": made.result, "trace": list(trace)}
        observed.append({**told, "dispatch_after": dispatch_told(composite)} if "dispatch_after" in step else told)
    return {"steps": observed} if "steps" in row else observed[0]
