"""Which node of a fleet a job should go to: pure and deterministic.

A node can run a job if `choose` gives it a target there and its architecture is the one that the job asks for, if it asks. Its score is
`LOCAL_BONUS` if it has the job's image, less its load: the jobs of this batch that it was given, per processor core. The highest score wins; of
equal ones, the node that stands first by name and id. A node that is given a job counts as having its image from then on.

Loads only grow, so that a node's place in a heap can only be too good: the first entry that is still true is the best.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappush, heapreplace
from typing import Final

from zlayer_driver.choice import Choice, NodeShape, Request, choose
from zlayer_driver.errors import ConfigError, DriverError, RouteToPeer, WrongPlatform
from zlayer_driver.model import ImageFacts
from zlayer_driver.nomad.fleet import FleetNode

LOCAL_BONUS: Final = 4.0  # jobs per core that an image at hand is worth
Entry = tuple[float, int]  # load and number of a node
Group = tuple[NodeShape, str]  # nodes that choose alike: shape and architecture


class NoNode(DriverError):
    """No node of a fleet can run a job. ``refused`` counts nodes by why they cannot."""

    kind = "NoNode"

    def __init__(self, refused: Mapping[str, int]) -> None:
        why = "; ".join(f"{count} x {reason}" for reason, count in refused.items()) or "it has no nodes"
        super().__init__(f"no node of the fleet can run it: {why}")


@dataclass(frozen=True, slots=True)
class Placement:
    """``load`` is the node's before it was given this job, in jobs per core; ``is_local``: it has the image."""

    node: FleetNode
    choice: Choice
    load: float
    is_local: bool

    @property
    def score(self) -> float:
        return LOCAL_BONUS * self.is_local - self.load


@dataclass(frozen=True, slots=True)
class Need:
    """What a job needs of a node, worked out once for all jobs that need the same. ``refused`` counts nodes by why they cannot."""

    request: Request
    facts: ImageFacts
    choices: Mapping[Group, Choice]
    nodes: int
    refused: Mapping[str, int]


class Fleet:
    """Nodes, and what this batch has given to each."""

    def __init__(self, nodes: Sequence[FleetNode]) -> None:
        self._nodes = sorted(nodes, key=lambda node: (node.name, node.id))
        self._jobs = [0] * len(self._nodes)
        self._images = [set(node.images) for node in self._nodes]
        self._group_of = [None if node.why_not or node.shape is None else (node.shape, node.arch) for node in self._nodes]
        self._heaps: dict[Group, list[Entry]] = defaultdict(list)
        self._local: dict[str, dict[Group, list[Entry]]] = defaultdict(lambda: defaultdict(list))
        self._hopeless = Counter(node.why_not or "has no zlayer driver" for node, group in self._members() if group is None)
        for number, (node, group) in enumerate(self._members()):
            if group is not None:
                self._heaps[group].append((0.0, number))
                for image in node.images:
                    self._local[image][group].append((0.0, number))

    def need(self, request: Request, facts: ImageFacts) -> Need:
        """Asks `choose` once for each kind of node; the request's ``service`` stands in refusals only."""
        choices: dict[Group, Choice] = {}
        refused, nodes = Counter(self._hopeless), 0
        for group, heap in self._heaps.items():
            outcome = _outcome(request, facts, group)
            if isinstance(outcome, Choice):
                choices[group] = outcome
                nodes += len(heap)
            else:
                refused[outcome.kind] += len(heap)
        return Need(request, facts, choices, nodes, refused)

    def place(self, need: Need) -> Placement | None:
        """Gives a job to the best node, or to none if none can run it."""
        found = min(self._candidates(need), default=None, key=lambda candidate: candidate[:2])
        if found is None:
            return None
        _, number, group = found
        node, load = self._nodes[number], self._load(number)
        is_local = need.request.image in self._images[number]
        self._jobs[number] += 1
        if not is_local:
            self._images[number].add(need.request.image)
            heappush(self._local[need.request.image][group], (self._load(number), number))
        return Placement(node, need.choices[group], load, is_local)

    def explain(self, need: Need) -> Iterator[Placement | tuple[FleetNode, str]]:
        """Of every node, by name: how it would do, or why it cannot."""
        for number, (node, group) in enumerate(self._members()):
            if group is None:
                yield node, node.why_not or "has no zlayer driver"
                continue
            outcome = _outcome(need.request, need.facts, group)
            if isinstance(outcome, Choice):
                yield Placement(node, outcome, self._load(number), need.request.image in self._images[number])
            else:
                yield node, str(outcome)

    def _members(self) -> Iterator[tuple[FleetNode, Group | None]]:
        return zip(self._nodes, self._group_of, strict=True)

    def _candidates(self, need: Need) -> Iterator[tuple[float, int, Group]]:
        """The best of each kind of node, with and without the image, as (negative score, number, group)."""
        local = self._local.get(need.request.image, {})
        for group in need.choices:
            load, number = self._least(self._heaps[group])
            yield load - LOCAL_BONUS * (need.request.image in self._images[number]), number, group
            if group in local:
                load, number = self._least(local[group])
                yield load - LOCAL_BONUS, number, group

    def _least(self, heap: list[Entry]) -> Entry:
        """The least loaded entry of a heap, which has one."""
        while True:
            load, number = heap[0]
            now = self._load(number)
            if now == load:
                return heap[0]
            heapreplace(heap, (now, number))

    def _load(self, number: int) -> float:
        return self._jobs[number] / self._nodes[number].cores


def _outcome(request: Request, facts: ImageFacts, group: Group) -> Choice | DriverError:
    shape, arch = group
    wanted = request.platform.arch if request.platform else None
    if wanted and arch and wanted != arch:
        return WrongPlatform("the node", arch, wanted, request.image)
    try:
        return choose(request, facts, shape)
    except (ConfigError, RouteToPeer) as error:
        return error
