"""What placing a batch costs: jobs per second from file to file, memory by the size of the batch, and a simulated fleet.

``python -m benchmarks.bench_place [DIRECTORY] [--plot FILE.svg] [--jobs N]``: batches are made in DIRECTORY, best on a tmpfs, for what is measured
is not the disk. Rates are per second of wall clock and of processor time; the latter is what stands on a machine with other work. The baseline is
one line after the other by json, pydantic, the same ``choose`` and json again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.conftest import Versus
from benchmarks.report import machine
from zlayer_driver.choice import NodeShape, Request, choose
from zlayer_driver.fastpath import canonical
from zlayer_driver.model import OS, ImageFacts, Platform, Target
from zlayer_driver.nomad.batch import Batch, chunks
from zlayer_driver.nomad.fleet import FleetNode
from zlayer_driver.nomad.placement import Decider, JobLine
from zlayer_driver.nomad.scoring import Fleet
from zlayer_driver.nomad.spread import FleetBatch

BLOCK = 100_000
ROUNDS = 5
REFERENCE_US = 0.57  # create and remove of the reference system, whose decision this is
SHAPES = (
    NodeShape(OS.LINUX, frozenset({Target.PRIMARY})),
    NodeShape(OS.LINUX, frozenset({Target.PRIMARY, Target.DELEGATE})),
    NodeShape(OS.DARWIN, frozenset(Target)),
    NodeShape(OS.WINDOWS, frozenset({Target.PRIMARY, Target.DELEGATE})),
)
IMAGES = [f"ghcr.io/team-{number % 50}/app-{number}:1.{number % 9}" for number in range(2000)]


def job_line(number: int, rng: random.Random) -> str:
    job: dict[str, object] = {"id": f"job-{number:08d}", "image": rng.choice(IMAGES)}
    kind = rng.random()
    if kind < 0.3:
        job["platform"] = {"os": "linux", "arch": "amd64"}
    if kind < 0.1:
        job["labels"] = {"com.zlayer.isolation": "vm", "team": "blue"}
    if kind > 0.9:
        job["runtime"] = "sandbox"
    return json.dumps(job)


def write_batch(path: Path, jobs: int) -> None:
    rng = random.Random(1)
    block = "".join(job_line(number, rng) + "\n" for number in range(min(jobs, BLOCK))).encode()
    with path.open("wb") as file:
        for _ in range(max(1, jobs // BLOCK)):
            file.write(block)


def placed(batch: Path, workers: int) -> tuple[float, float, float]:
    """Wall clock and processor seconds of ``zlayer-driver place``, and its peak memory in MiB."""
    program = "from zlayer_driver.cli.main import entry; entry()"
    argv = [sys.executable, "-c", program, "--state-dir", str(batch.parent / "state"), "place", "--workers", str(workers), str(batch)]
    began = time.perf_counter()
    out = os.open(batch.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    pid = os.posix_spawn(sys.executable, argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, out, 1)])
    os.close(out)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"place ended with status {status}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def baseline(batch: Path) -> float:
    """Jobs per processor second of plain Python."""
    began, count = time.process_time(), 0
    with batch.open("rb") as file, batch.with_suffix(".out").open("w") as out:
        for line in file:
            job = JobLine.model_validate(json.loads(line))
            platform = Platform(job.platform.os, job.platform.arch) if job.platform else None
            request = Request(service=job.id, image=canonical(job.image), runtime=job.runtime, labels=job.labels, platform=platform)
            choice = choose(request, ImageFacts(), SHAPES[0])
            out.write(json.dumps({"id": job.id, "target": choice.target, "rule": choice.rule}) + "\n")
            count += 1
    return count / (time.process_time() - began)


def throughput(directory: Path, largest: int) -> None:
    batch = directory / "batch.ndjson"
    write_batch(batch, BLOCK)
    plain = statistics.median(baseline(batch) for _ in range(ROUNDS))
    print(
        f"baseline (json, pydantic, choose, json): {plain:,.0f} jobs/s of processor time; reference, decision alone: {1e6 / REFERENCE_US:,.0f}"
    )
    batch.write_bytes(b"")
    start_s = statistics.median(placed(batch, 1)[0] for _ in range(ROUNDS))
    jobs = 10_000
    while jobs <= largest:
        write_batch(batch, jobs)
        rounds = [(placed(batch, 1), placed(batch, 2)) for _ in range(ROUNDS)]
        walls = []
        for workers, runs in enumerate(zip(*rounds, strict=True), 1):
            wall, spent, peak = map(statistics.median, zip(*runs, strict=True))
            walls.append(wall)
            print(
                f"{jobs:>10,} jobs, {workers} worker(s): {jobs / wall:>9,.0f}/s wall, {jobs / spent:>9,.0f}/s processor"
                f" ({jobs / spent / plain:.1f} x baseline), peak {peak:.0f} MiB"
            )
        one, two = walls
        if one > 2 * start_s:
            print(f"{'':>10} two beside one: {one / two:.2f} x, {(one - start_s) / (two - start_s):.2f} x but for the start of the program")
        jobs *= 10
    print(f"load average {os.getloadavg()[0]:.1f}; medians of {ROUNDS} runs in turn; the start of the program is {start_s:.2f} s of each")


def fleet(nodes: int) -> Fleet:
    rng = random.Random(2)

    def node(number: int) -> FleetNode:
        images = frozenset(rng.sample(IMAGES, 5))
        arch = rng.choice(["amd64", "arm64"])
        name = f"node-{number:05d}"
        return FleetNode(id=name, name=name, shape=rng.choice(SHAPES), arch=arch, cores=rng.choice([4, 16, 64]), images=images)

    return Fleet([node(number) for number in range(nodes)])


def simulated(batch: Path, nodes: int, report: Callable[[int, float], None] = lambda _done, _spent: None) -> float:
    """Processor seconds for a whole batch over a fleet, both made outside of them; ``report`` hears of each chunk's end."""
    spread = FleetBatch(fleet(nodes), lambda _image: ImageFacts())
    began, done = time.process_time(), 0
    with batch.open("rb") as file, batch.with_suffix(".out").open("wb") as out:
        for block in spread.answers(chunks(file)):
            done += block.count(b"\n")
            out.write(block)
            report(done, time.process_time() - began)
    return time.process_time() - began


def simulation(directory: Path, jobs: int, plot: Path | None) -> None:
    batch = directory / "batch.ndjson"
    write_batch(batch, jobs)
    by_jobs: list[tuple[int, float]] = [(0, 0.0)]
    whole = simulated(batch, 10_000, lambda done, spent: by_jobs.append((done, spent)))
    print(f"10,000 nodes x {jobs:,} jobs: {whole:.1f} s")
    write_batch(batch, BLOCK)
    by_nodes = [(nodes, simulated(batch, nodes)) for nodes in (10, 30, 100, 300, 1000, 3000, 10_000, 30_000)]
    for nodes, spent in by_nodes:
        print(f"{nodes:>6,} nodes x {BLOCK:,} jobs: {spent:.2f} s")
    if plot is not None:
        draw(plot, by_jobs, by_nodes)


def draw(path: Path, by_jobs: list[tuple[int, float]], by_nodes: list[tuple[int, float]]) -> None:
    import matplotlib as mpl  # noqa: PLC0415  # in the benchmark group only

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "placement", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot as plt  # noqa: PLC0415  # after the choice of the backend

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    left.plot([jobs / 1e6 for jobs, _ in by_jobs], [spent for _, spent in by_jobs])
    left.set(xlabel="jobs (millions), 10,000 nodes", ylabel="seconds", title="linear in jobs", ylim=(0, None), xlim=(0, None))
    right.semilogx([nodes for nodes, _ in by_nodes], [spent / BLOCK * 1e6 for _, spent in by_nodes], marker="o")
    right.set(xlabel=f"nodes, {BLOCK:,} jobs", ylabel="microseconds a job", title="nearly flat in nodes", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(f"one core of {machine()['cpu']}, Python {machine()['python']}", fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def in_process(batch: Path, workers: int) -> None:
    decider = Decider(SHAPES[1], lambda _image: ImageFacts())
    with batch.open("rb") as file, batch.with_suffix(".out").open("wb") as out:
        for block in Batch(decider, workers).answers(chunks(file)):
            out.write(block)


@pytest.mark.timeout(600)
def test_lines_beside_plain_python(versus: Versus, tmp_path: Path) -> None:
    batch = tmp_path / "batch.ndjson"
    write_batch(batch, BLOCK)
    versus(lambda: in_process(batch, 1), lambda: BLOCK / baseline(batch), against="json, pydantic, choose, json", limit=1 / 7, rounds=5)


@pytest.mark.timeout(600)
def test_two_threads_beside_one(versus: Versus, tmp_path: Path) -> None:
    batch = tmp_path / "batch.ndjson"
    write_batch(batch, 30 * BLOCK)
    versus(lambda: in_process(batch, 2), lambda: in_process(batch, 1), against="one thread", limit=1 / 1.7, rounds=5)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("nodes", [1000, 10_000, 100_000])
def test_a_fleet_beside_a_hundred_nodes(versus: Versus, tmp_path: Path, nodes: int) -> None:
    batch = tmp_path / "batch.ndjson"
    write_batch(batch, BLOCK // 10)
    versus(lambda: simulated(batch, nodes), lambda: simulated(batch, 100), against="100 nodes", rounds=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--jobs", type=int, default=1_000_000, help="jobs of the largest batch")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.directory) as scratch:
        throughput(Path(scratch), given.jobs)
        simulation(Path(scratch), min(given.jobs, 1_000_000), given.plot)


if __name__ == "__main__":
    main()
