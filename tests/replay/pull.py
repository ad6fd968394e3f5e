"""Pulls: who is asked, whose failure counts, which facts are known afterwards, and whether any registry was contacted for them."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.replay import deviations
from tests.replay.caches import manifest_key, write_cache
from tests.replay.calls import make
from tests.replay.judge import Observed, verdict
from tests.replay.outcome import Outcome
from tests.replay.recorder import recorders
from tests.replay.words import Json, Row, facts_of, facts_told
from zlayer_driver import fastpath
from zlayer_driver.composite import Composite
from zlayer_driver.model import OS, ImageFacts

NAME, FILE = "pull", "pull.jsonl.gz"
_BY_DEFAULT = {"policy": "always", "source": "local_first", "auth": None}


def replay(root: Path, rows: Iterable[Row]) -> Iterator[Outcome]:
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory() as caches:
        for row in rows:
            play = _network if row.get("group") == "network" else _steps if "steps" in row else _pull
            yield verdict(runner, row, _recorded(row), play(row, Path(caches)), deviations.OF_PULL)


def expected_pull(call: Row) -> Json:
    """A recorded call or note of ``pull_image`` as the pull with a policy that it is here."""
    if call["m"] != "pull_image":
        return call
    return {**call, "m": "pull_image_with_policy", "args": {**_BY_DEFAULT, **call["args"]}}


def _recorded(row: Row) -> Observed:
    if "steps" in row:
        return {"steps": [_recorded(step) for step in row["steps"]]}
    kept = {key: row[key] for key in ("result", "facts_after", "connections", "registry_contacted") if key in row}
    return {**kept, "trace": [expected_pull(call) for call in row["trace"]]}


def program_of(row: Row) -> Mapping[str, Mapping[str, Sequence[Json]]]:
    """What a row programs, with ``pull_image`` under the name that it has here."""
    named = {"pull_image": "pull_image_with_policy"}
    return {role: {named.get(name, name): items for name, items in methods.items()} for role, methods in row["program"].items()}


async def _pull(row: Row, caches: Path) -> Observed:
    cache = caches / "blobs.sqlite"
    write_cache(cache, {manifest_key(image): facts_of(facts) for image, facts in row["cache"].items()})
    with fastpath.BlobCache(cache) as opened:
        return await _pulled(row, [opened] if row["cache"] else [])


async def _pulled(row: Row, caches: Sequence[Path | fastpath.BlobCache]) -> Observed:
    trace: list[Json] = []
    composite = _composite(row, caches, trace)
    return {**await _step(composite, row), "trace": trace}


def _composite(row: Row, caches: Sequence[Path | fastpath.BlobCache], trace: list[Json]) -> Composite:
    backends = recorders(row["attached"], program_of(row), trace)
    return Composite(backends, native_os=OS.DARWIN, facts=lambda image: fastpath.image_facts(image, caches))


async def _step(composite: Composite, step: Row) -> Observed:
    call = expected_pull(step["call"])
    made = await make(composite, call["m"], "", call["args"])
    image = fastpath.canonical(call["args"]["image"])
    return {"result": made.result, "facts_after": facts_told(composite._facts.get(image, ImageFacts()))}


async def _steps(row: Row, caches: Path) -> Observed:
    """Pulls of one image whose cache changes in between, behind the same open handle."""
    trace: list[Json] = []
    steps = []
    path = caches / "blobs.sqlite"
    path.unlink(missing_ok=True)
    composite: Composite | None = None
    for step in row["steps"]:
        image = step["call"]["args"]["image"]
        _set_state(path, image, step)
        composite = composite or _composite(row, [path], trace)
        observed = await _step(composite, step)
        steps.append({**observed, "trace": list(trace)})
        trace.clear()
    return {"steps": steps}


def _set_state(path: Path, image: str, step: Row) -> None:
    """The cache of a recorded state. Its name tells its config: an operating system, or broken; of another, what was learnt tells."""
    state = step["cache_state"]
    system = state.removeprefix("os=") if state.startswith("os=") else None
    readable = system is not None or step["facts_after"]["isolation"] == f"iso-{state}"
    facts = ImageFacts(OS(system) if system in set(map(str, OS)) else None, f"mk-{state}", f"iso-{state}" if readable else None)
    there = readable or state == "cfg-broken" or step["facts_after"]["marker"] == facts.marker
    write_cache(path, {manifest_key(image): facts} if there else {}, config=None if readable else b"{broken")


async def _network(row: Row, caches: Path) -> Observed:
    """A listener stands in for the registry, so that a connection for a fact would be seen."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = str(listener.getsockname()[1])
        here: Row = json.loads(json.dumps(row).replace("PORT", port))
        opened = [fastpath.BlobCache(path) for path in _network_caches(here, caches)]
        try:
            observed = await _pulled(here, opened)
        finally:
            for cache in opened:
                cache.close()
        connections = _pending(listener)
    told: Observed = json.loads(json.dumps(observed).replace(port, "PORT"))
    return {**told, "connections": connections, "registry_contacted": bool(connections)}


def _network_caches(row: Row, caches: Path) -> list[Path]:
    facts = ImageFacts(
        OS.LINUX if row["config_has_os"] else None,
        "vz" if row["manifest_has_marker"] else None,
        "vm" if row["config_has_isolation"] else None,
    )
    key = manifest_key(row["call"]["args"]["image"])
    paths = [caches / f"{number}" / "blobs.sqlite" for number in range(row["caches"])]
    for path in paths:
        write_cache(path, {key: facts} if row["in_last_cache"] and path is paths[-1] else {})
    return paths


def _pending(listener: socket.socket) -> int:
    """How many connections wait to be accepted."""
    found = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return found
        found += 1
