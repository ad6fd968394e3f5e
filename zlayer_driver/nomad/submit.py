"""Hands a batch to Nomad and follows it to its end.

Nothing runs twice: each call is planned in the journal first, and made so that Nomad itself refuses the second of two (a job is registered
only if there is none of its ID; a dispatch carries an idempotency token).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from zlayer_driver.errors import InvalidSpec, NomadError
from zlayer_driver.nomad.client import Nomad, in_parallel
from zlayer_driver.nomad.jobs import Json, Work, group_name, nomad_job
from zlayer_driver.nomad.journal import Entry, Journal

COMPLETE, FAILED, REFUSED, GONE = "complete", "failed", "refused", "gone"
_EXISTS = "Enforcing job modify index 0: job already exists"
_CHARS_OF_TOKEN: Final = 120
Progress = Callable[[int, int], None]
"""Called with how many lines have ended, and how many there are."""


def entries_of(batch: str, works: Iterable[Work], *, pack: int) -> Iterator[Entry]:
    """Entries that register up to ``pack`` lines in one Nomad job."""
    left = iter(works)
    while some := list(islice(left, pack)):
        job = nomad_job(batch, some)
        body = {"Job": job, "EnforceIndex": True, "JobModifyIndex": 0}
        yield Entry(job["ID"], {group_name(work.line.id): work.line.id for work in some}, body)


def dispatches_of(batch: str, works: Iterable[Work], parent: Json) -> Iterator[Entry]:
    """Entries that dispatch the parameterised job ``parent`` for each line: what it declares as meta is filled from the line."""
    declared = parent.get("ParameterizedJob")
    if not declared:
        raise InvalidSpec(f"Nomad job {parent.get('ID')!r} is not parameterised")
    taken = {*(declared.get("MetaRequired") or ()), *(declared.get("MetaOptional") or ())}
    for work in works:
        line = work.line
        platform = work.request.platform
        known = {
            "id": line.id,
            "image": line.image,
            "runtime": line.runtime,
            "os": platform and platform.os,
            "arch": platform and platform.arch,
            **line.env,
        }
        body: Json = {"Meta": {key: str(value) for key, value in known.items() if value and key in taken}}
        if declared.get("Payload") != "forbidden":
            body["Payload"] = base64.b64encode(line.model_dump_json(exclude_unset=True).encode()).decode()
        yield Entry(f"{batch}-{group_name(line.id)}", {"": line.id}, body, str(parent["ID"]))


class Submission:
    """One batch on its way. ``refused`` has what Nomad did not take, by line."""

    def __init__(self, nomad: Nomad, journal: Journal) -> None:
        self._nomad = nomad
        self._journal = journal
        self.refused: dict[str, NomadError] = {}

    async def run(self, progress: Progress) -> dict[str, str]:
        """Submits what is planned and not accepted yet, and follows all; the outcome of each line by its id."""
        await in_parallel(self._submit, [entry for entry in self._journal.entries.values() if not entry.nomad_id])
        await self._follow(progress)
        found = {name: REFUSED for entry in self._journal.entries.values() for name in entry.jobs.values()}
        for entry in self._journal.entries.values():
            found |= entry.outcomes
        return found

    async def _submit(self, entry: Entry) -> None:
        try:
            nomad_id = await (self._dispatch(entry) if entry.parent else self._register(entry))
        except NomadError as error:
            if error.recoverable or error.status in {0, 401, 403}:
                raise  # of no line in particular; what was not accepted can be resumed
            self.refused |= dict.fromkeys(entry.jobs.values(), error)
        else:
            self._journal.accepted(entry, nomad_id)

    async def _register(self, entry: Entry) -> str:
        try:
            await self._nomad.post("/v1/jobs", entry.body)
        except NomadError as error:
            if _EXISTS not in error.reason:
                raise
        return entry.key

    async def _dispatch(self, entry: Entry) -> str:
        answer = await self._nomad.post(f"/v1/job/{entry.parent}/dispatch", entry.body, idempotency_token=entry.key[:_CHARS_OF_TOKEN])
        return str(answer["DispatchedJobID"])

    async def _follow(self, progress: Progress) -> None:
        """Waits until all that Nomad accepted has ended, by one blocking query for the whole batch."""
        total = sum(len(entry.jobs) for entry in self._journal.entries.values())
        index = 0
        while True:
            running = {entry.nomad_id: entry for entry in self._journal.entries.values() if entry.nomad_id and not entry.outcomes}
            progress(total - sum(len(entry.jobs) for entry in running.values()), total)
            if not running:
                return
            prefix = _common_prefix(list(running))
            index = await self._nomad.changed("/v1/jobs", index, prefix=prefix)
            listed = {job["ID"]: job async for job in self._nomad.pages("/v1/jobs", prefix=prefix)}
            for nomad_id, entry in running.items():
                outcomes = _outcomes(entry, listed.get(nomad_id))
                if outcomes:
                    self._journal.ended(entry, outcomes)


def _common_prefix(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    return first[: next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))]


def _outcomes(entry: Entry, job: Mapping[str, Any] | None) -> dict[str, str]:
    """How each line of an entry ended, or nothing while its job goes on. A job that Nomad has no more ended long ago, nobody knows how."""
    if job is None:
        return dict.fromkeys(entry.jobs.values(), GONE)
    if job["Status"] != "dead":
        return {}
    groups = (job.get("JobSummary") or {}).get("Summary") or {}
    if entry.parent:
        good = bool(groups) and all(map(_is_complete, groups.values()))
        return dict.fromkeys(entry.jobs.values(), COMPLETE if good else FAILED)
    return {name: COMPLETE if _is_complete(groups.get(group, {})) else FAILED for group, name in entry.jobs.items()}


def _is_complete(counts: Mapping[str, int]) -> bool:
    return counts.get("Complete", 0) > 0
