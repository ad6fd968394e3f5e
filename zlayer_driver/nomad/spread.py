"""A batch over a fleet: which node each job should go to, one answer a line, in order.

An answer is ``{"id", "target", "rule", "node": {"id", "name"}, "score", "local", "nodes", "refused"}``: of how many nodes the best was
chosen, and how many cannot, by why. A job that no node can run has an ``error`` of kind ``NoNode`` with the same ``refused``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from zlayer_driver import fastpath
from zlayer_driver.errors import DriverError
from zlayer_driver.model import ISOLATION_LABEL
from zlayer_driver.nomad.batch import Chunk
from zlayer_driver.nomad.fleet import FleetNode
from zlayer_driver.nomad.placement import ID_HOLE, LINE_HOLE, Facts, JobLine, encoded, id_of, parse_job, read_line, refusal, request_of
from zlayer_driver.nomad.scoring import Fleet, Need, NoNode, Placement

_KEPT_NEEDS = 1 << 16


class FleetBatch:
    """Places lines one after the other, for each changes what is best for the next. ``explain`` adds how every node would do."""

    def __init__(self, fleet: Fleet, facts: Facts, *, explain: bool = False) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._fleet, self._facts, self._explain = fleet, facts, explain
        self._lines = fastpath.JobLines(self._tell, self._know)
        self._images: dict[str, int] = {}
        self._needs: list[Need] = []
        self._numbers: dict[tuple[object, ...], int] = {}

    def answers(self, work: Iterable[Chunk]) -> Iterator[bytes]:
        """The answers to each chunk, in order."""
        for chunk, number in work:
            rows = self._lines.answer(chunk, number).splitlines()
            yield b"".join(row[1:] + b"\n" if row.startswith(b"!") else self._placed(*row.split(b" ", 2)) for row in rows)
            del self._needs[_KEPT_NEEDS:]

    def _tell(self, line: bytes, number: int, plain: bool) -> tuple[bytes, int, bool]:
        """A line as the number of its need, its own number, and its id in JSON; or ``!`` and the answer, where it is no job."""
        if not line.strip():
            return b"", 0, False
        document: dict[str, Any] = {}
        try:
            document = read_line(line)
            job = parse_job(JobLine, document)
            need, is_kept = self._need(job)
        except DriverError as error:
            self.counts["none", error.kind] += 1
            return b"!" + encoded(refusal(id_of(document), number, error)), 0, False
        if plain and is_kept:
            return b'%d %s "%s"\n' % (need, LINE_HOLE, ID_HOLE), 0, True
        return b"%d %d %s\n" % (need, number, json.dumps(job.id).encode()), 0, False

    def _know(self, image: str) -> tuple[bytes, int] | None:
        """Each image has a number of its own here, for nodes have images and not facts."""
        name = fastpath.canonical(image)
        if name not in self._images and len(self._images) >= _KEPT_NEEDS:
            return None
        return name.encode(), self._images.setdefault(name, len(self._images))

    def _need(self, job: JobLine) -> tuple[int, bool]:
        """The number of a need, and whether it stands for longer than this chunk."""
        request = request_of(job, "the job")
        facts = self._facts(request.image)
        platform = request.platform
        key = (request.image, request.runtime, request.labels.get(ISOLATION_LABEL), platform and platform.os, platform and platform.arch)
        if key in self._numbers:
            return self._numbers[key], True
        self._needs.append(self._fleet.need(request, facts))
        number = len(self._needs) - 1
        is_kept = number < _KEPT_NEEDS
        if is_kept:
            self._numbers[key] = number
        return number, is_kept

    def _placed(self, need_number: bytes, line: bytes, name: bytes) -> bytes:
        need = self._needs[int(need_number)]
        fleet = [_explained(told) for told in self._fleet.explain(need)] if self._explain else None
        found = self._fleet.place(need)
        self.counts[(found.choice.target, found.choice.rule) if found else ("none", NoNode.kind)] += 1
        answer = _answer(found, need) if found else {"line": int(line), **_nobody(need)}
        if fleet is not None:
            answer["fleet"] = fleet
        return b'{"id": %s, %s' % (name, encoded(answer)[1:])


def _answer(found: Placement, need: Need) -> dict[str, Any]:
    return {
        "target": found.choice.target,
        "rule": found.choice.rule,
        "node": {"id": found.node.id, "name": found.node.name},
        "score": round(found.score, 3),
        "local": found.is_local,
        "nodes": need.nodes,
        "refused": need.refused,
    }


def _nobody(need: Need) -> dict[str, Any]:
    error = NoNode(need.refused)
    return {"error": {"kind": error.kind, "message": str(error), "refused": need.refused}}


def _explained(told: Placement | tuple[FleetNode, str]) -> dict[str, Any]:
    if isinstance(told, Placement):
        choice = told.choice
        return {"node": told.node.name, "target": choice.target, "rule": choice.rule, "score": round(told.score, 3), "local": told.is_local}
    node, why = told
    return {"node": node.name, "refused": why}
