"""Which target a container goes to: the exhaustive matrices, and whole sequences of pull and create."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.replay import deviations
from tests.replay.caches import manifest_key, write_cache
from tests.replay.calls import make
from tests.replay.judge import Observed, verdict
from tests.replay.outcome import Outcome
from tests.replay.pull import expected_pull
from tests.replay.recorder import recorders
from tests.replay.words import Json, Row, displayed, facts_of, facts_told, task_id
from zlayer_driver import fastpath
from zlayer_driver.composite import Composite
from zlayer_driver.model import OS, ImageFacts

NAME, FILE = "dispatch", "dispatch.jsonl.gz"


def replay(root: Path, rows: Iterable[Row]) -> Iterator[Outcome]:
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory() as caches:
        for row in rows:
            play = _pull_and_create if "pull_trace" in row else _create
            yield verdict(runner, row, _recorded(row), play(row, Path(caches)), deviations.OF_DISPATCH)


def _recorded(row: Row) -> Observed:
    kept = ("target", "result", "trace", "pull_result", "facts_for_pulled", "facts_for_created")
    pull = {"pull_trace": [expected_pull(call) for call in row["pull_trace"]]} if "pull_trace" in row else {}
    return {**{key: row[key] for key in kept if key in row}, **pull}


async def _create(row: Row, caches: Path) -> Observed:
    trace: list[Json] = []
    composite = Composite(recorders(row["attached"], {}, trace), native_os=OS.DARWIN, facts=lambda image: facts_of(row["facts"]))
    return await _created(composite, row, trace)


async def _created(composite: Composite, row: Row, trace: list[Json]) -> Observed:
    task = task_id(row["id"])
    made = await make(composite, "create_container", task, {"spec": row["spec"]})
    owners = {displayed(handle.task_id): handle.target for handle in composite.handles()}
    return {"target": owners.get(displayed(task)), "result": made.result, "trace": trace}


async def _pull_and_create(row: Row, caches: Path) -> Observed:
    """A real cache behind a real pull; only the runtimes are recorders."""
    pulled = row.get("pulled", row["spec"]["image"])
    images = row.get("cache") or {manifest_key(pulled): row["facts"]}
    cache = caches / "blobs.sqlite"
    write_cache(cache, {key: facts_of(facts) for key, facts in images.items()})
    trace: list[Json] = []
    with fastpath.BlobCache(cache) as opened:
        composite = Composite(
            recorders(row["attached"], {}, trace), native_os=OS.DARWIN, facts=lambda image: fastpath.image_facts(image, [opened])
        )
        args = {"image": pulled, "policy": "always", "source": "local_first", "auth": None}
        made = await make(composite, "pull_image_with_policy", "", args)
        pull_trace, trace[:] = list(trace), []
        names = {"facts_for_pulled": pulled, "facts_for_created": row["spec"]["image"]} if "pulled" in row else {}
        facts = {name: facts_told(remembered(composite, image)) for name, image in names.items()}
        return {"pull_result": made.result, "pull_trace": pull_trace, **facts, **await _created(composite, row, trace)}


def remembered(composite: Composite, image: str) -> ImageFacts:
    """What the composite keeps in memory, without asking a cache."""
    return composite._facts.get(fastpath.canonical(image), ImageFacts())
