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
Kind = tuple[NodeShape, str]  # what nodes that choose alike share: shape and architecture
_LACKS: Final = {
    ConfigError.kind: "lacks the target that the job asks for",
    RouteToPeer.kind: "runs no such operating system",
    WrongPlatform.kind: "has another architecture",
}


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
    """What a job needs of a node, worked out once for all jobs that need the same.

    ``choices`` are by the number of a kind of nodes; ``refused`` counts nodes by why they cannot.
    """

    request: Request
    facts: ImageFacts
    choices: Mapping[int, Choice]
    nodes: int
    refused: Mapping[str, int]


class Fleet:
    """Nodes, and what this batch has given to each."""

    def __init__(self, nodes: Sequence[FleetNode]) -> None:
        self._nodes = sorted(nodes, key=lambda node: (node.name, node.id))
        self._jobs = [0] * len(self._nodes)
        self._loads = [0.0] * len(self._nodes)
        self._images = [set(node.images) for node in self._nodes]
        kinds = [None if node.why_not or node.shape is None else (node.shape, node.arch) for node in self._nodes]
        self._kinds: list[Kind] = list(dict.fromkeys(kind for kind in kinds if kind is not None))
        self._kind_of = [None if kind is None else self._kinds.index(kind) for kind in kinds]
        self._heaps: list[list[Entry]] = [[] for _ in self._kinds]
        self._local: dict[str, dict[int, list[Entry]]] = defaultdict(lambda: defaultdict(list))
        self._hopeless = Counter(_why_not(node) for node, kind in self._members() if kind is None)
        for number, (node, kind) in enumerate(self._members()):
            if kind is not None:
                self._heaps[kind].append((0.0, number))
                for image in node.images:
                    self._local[image][kind].append((0.0, number))

    def need(self, request: Request, facts: ImageFacts) -> Need:
        """Asks `choose` once for each kind of node; the request's ``service`` stands in refusals only."""
        choices: dict[int, Choice] = {}
        refused, nodes = Counter(self._hopeless), 0
        for kind, heap in enumerate(self._heaps):
            outcome = _outcome(request, facts, self._kinds[kind])
            if isinstance(outcome, Choice):
                choices[kind] = outcome
                nodes += len(heap)
            else:
                refused[_LACKS[outcome.kind]] += len(heap)
        return Need(request, facts, choices, nodes, refused)

    def place(self, need: Need) -> Placement | None:
        """Gives a job to the best node, or to none if none can run it."""
        _, number, kind = min(self._candidates(need), default=(0.0, -1, -1))
        if number < 0:
            return None
        node, load, image = self._nodes[number], self._loads[number], need.request.image
        is_local = image in self._images[number]
        self._jobs[number] += 1
        self._loads[number] = self._jobs[number] / node.cores
        if not is_local:
            self._images[number].add(image)
            heappush(self._local[image][kind], (self._loads[number], number))
        return Placement(node, need.choices[kind], load, is_local)

    def explain(self, need: Need) -> Iterator[Placement | tuple[FleetNode, str]]:
        """Of every node, by name: how it would do, or why it cannot."""
        for number, (node, kind) in enumerate(self._members()):
            if kind is None:
                yield node, _why_not(node)
                continue
            outcome = _outcome(need.request, need.facts, self._kinds[kind])
            if isinstance(outcome, Choice):
                yield Placement(node, outcome, self._loads[number], need.request.image in self._images[number])
            else:
                yield node, str(outcome)

    def _members(self) -> Iterator[tuple[FleetNode, int | None]]:
        return zip(self._nodes, self._kind_of, strict=True)

    def _candidates(self, need: Need) -> Iterator[tuple[float, int, int]]:
        """The best of each kind of node, with and without the image, as (negative score, number, kind)."""
        image = need.request.image
        local = self._local.get(image, {})
        for kind in need.choices:
            load, number = self._least(self._heaps[kind])
            yield (load - LOCAL_BONUS if image in self._images[number] else load), number, kind
            if kind in local:
                load, number = self._least(local[kind])
                yield load - LOCAL_BONUS, number, kind

    def _least(self, heap: list[Entry]) -> Entry:
        """The least loaded entry of a heap, which has one."""
        while heap[0][0] != self._loads[heap[0][1]]:
            number = heap[0][1]
            heapreplace(heap, (self._loads[number], number))
        return heap[0]


def _why_not(node: FleetNode) -> str:
    return node.why_not or "has no zlayer driver"


def _outcome(request: Request, facts: ImageFacts, kind: Kind) -> Choice | ConfigError | RouteToPeer | WrongPlatform:
    shape, arch = kind
    wanted = request.platform.arch if request.platform else None
    if wanted and arch and wanted != arch:
        return WrongPlatform("the node", arch, wanted, request.image)
    try:
        return choose(request, facts, shape)
    except (ConfigError, RouteToPeer) as error:
        return error
