"""What a run of the benchmarks leaves in ``build/bench``: every ratio as JSON, and a picture of each growth curve."""

from __future__ import annotations

import json
import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parents[1] / "build" / "bench"
_LEAST_POINTS = 3


@dataclass(frozen=True)
class Ratio:
    """``curve`` is the name that the points of one curve share, and ``size`` what they differ in, such as ``("keys", 1000)``."""

    name: str
    ours_s: float
    peer_s: float
    limit: float | None
    peer: str
    worst_s: tuple[float, float] | None = None  # the 99th percentiles, of runs that are long enough to have one
    curve: str = ""
    size: tuple[str, int] | None = None

    @property
    def value(self) -> float:
        return self.ours_s / self.peer_s


def machine() -> Mapping[str, object]:
    """What absolute times depend on, and ratios should not."""
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def write(ratios: Iterable[Ratio], directory: Path = DIRECTORY) -> list[Path]:
    """The files written."""
    directory.mkdir(parents=True, exist_ok=True)
    found = list(ratios)
    document = {"machine": machine(), "ratios": [asdict(ratio) | {"ratio": ratio.value} for ratio in found]}
    (directory / "ratios.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    curves: dict[str, list[Ratio]] = defaultdict(list)
    for ratio in found:
        if ratio.size:
            curves[ratio.curve].append(ratio)
    drawn = [_draw(name, points, directory) for name, points in curves.items() if len(points) >= _LEAST_POINTS]
    return [directory / "ratios.json", *drawn]


def _draw(name: str, points: list[Ratio], directory: Path) -> Path:
    """Ours and the peer's, by what grows; both axes logarithmic, so that a straight line is a power."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # a run without a curve needs no pictures

    points = sorted(points, key=lambda point: point.size or ("", 0))
    axes, sizes = zip(*(point.size for point in points if point.size), strict=True)
    figure = Figure(figsize=(6, 4), layout="constrained")
    plot = figure.subplots()
    plot.loglog(sizes, [point.ours_s for point in points], marker="o", label="ours")
    plot.loglog(sizes, [point.peer_s for point in points], marker="s", label=points[0].peer)
    plot.set(xlabel=axes[0], ylabel="seconds", title=name.replace("_", " "))
    plot.grid(visible=True, which="both", alpha=0.3)
    plot.legend()
    path = directory / f"{name}.svg"
    figure.savefig(path)
    return path


def table(document: Mapping[str, Any]) -> str:
    """A run's ratios as a page."""
    at = document["machine"]
    head = f"""\
# Results

Printed by `make bench` on {at["cpu"]} ({at["cores"]} cores), Linux {at["kernel"]}, Python {at["python"]}, at load {at["load"]:.1f}; made into this page by `python -m benchmarks.report`.

| benchmark | ours | peer | ratio | limit | peer is |
|---|--:|--:|--:|--:|---|
"""
    rows = (
        f"| {one['name'].removeprefix('test_').replace('_', ' ')} | {duration(one['ours_s'])} | {duration(one['peer_s'])} | {one['ratio']:.3f} "
        f"| {'' if one['limit'] is None else format(one['limit'], '.3g')} | {one['peer']} |\n"
        for one in document["ratios"]
    )
    return head + "".join(rows)


def duration(seconds: float) -> str:
    """Three digits and the unit that fits."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


if __name__ == "__main__":
    Path(__file__).with_name("results.md").write_text(table(json.loads((DIRECTORY / "ratios.json").read_text())), encoding="utf-8")
