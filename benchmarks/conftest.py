"""Ratios: what is ours and what is a peer's, in turn in one run, so that a busy machine slows both alike."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.report import Ratio, duration, write

_FOR_P99 = 200
_SIZES = {"count": "keys", "threads": "threads", "jobs": "jobs", "nodes": "nodes"}  # parameters that make curves
_RATIOS = pytest.StashKey[list[Ratio]]()


class Versus:
    """``versus(ours, peer, …)`` runs the peer before each round of ours. Medians count; the limit is shown, never enforced."""

    def __init__(self, benchmark: BenchmarkFixture, ratios: list[Ratio], item: pytest.Function) -> None:
        self._benchmark = benchmark
        self._ratios = ratios
        self._name = item.name
        params = item.callspec.params if hasattr(item, "callspec") else {}
        self._size = next(((_SIZES[key], int(str(value))) for key, value in params.items() if key in _SIZES), None)
        others = [getattr(value, "__name__", str(value)).rpartition(".")[2] for key, value in params.items() if key not in _SIZES]
        self._curve = "-".join([item.originalname.removeprefix("test_"), *others])

    def __call__(
        self,
        ours: Callable[[], Any],
        peer: Callable[[], Any],
        *,
        against: str,
        limit: float | None = None,
        rounds: int = 20,
        idle_s: float = 0.0,
    ) -> Ratio:
        """Both callables do one unit of work, or return the seconds that the part to be compared took."""
        peers: list[float] = []
        own: list[float] = []

        def before() -> None:
            time.sleep(idle_s)
            peers.append(_timed(peer))
            time.sleep(idle_s)

        def round_() -> None:
            own.append(_timed(ours))

        self._benchmark.pedantic(round_, setup=before, rounds=rounds, warmup_rounds=1)  # type: ignore[no-untyped-call]  # the package has no types here
        worst = (_p99(own[1:]), _p99(peers[1:])) if rounds >= _FOR_P99 else None
        ratio = Ratio(self._name, statistics.median(own[1:]), statistics.median(peers[1:]), limit, against, worst, self._curve, self._size)
        self._benchmark.extra_info.update(
            {"peer": against, "peer_median_s": ratio.peer_s, "ours_median_s": ratio.ours_s, "ratio": ratio.value, "limit": limit}
        )
        self._ratios.append(ratio)
        return ratio


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[-1]


def _timed(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    told = work()
    return told if isinstance(told, float) else time.perf_counter() - begun


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RATIOS] = []


@pytest.fixture
def versus(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Versus:
    return Versus(benchmark, request.config.stash[_RATIOS], request.node)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    ratios = config.stash[_RATIOS]
    if not ratios:
        return
    terminalreporter.section(f"ratios (load {os.getloadavg()[0]:.1f}; medians, peers in the same run)")
    for ratio in ratios:
        limit = "" if ratio.limit is None else f"  limit {ratio.limit:g} {'kept' if ratio.value <= ratio.limit else 'MISSED'}"
        worst = "" if ratio.worst_s is None else f"  p99 {duration(ratio.worst_s[0])} / {duration(ratio.worst_s[1])}"
        terminalreporter.write_line(
            f"{ratio.name:44} {duration(ratio.ours_s):>10} / {duration(ratio.peer_s):>10} = {ratio.value:7.3f}{limit}{worst}  ({ratio.peer})"
        )

    for path in write(ratios):
        terminalreporter.write_line(f"wrote {path}")
