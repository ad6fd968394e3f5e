"""How long our start of a container takes beside a bare ``runc create`` and ``runc start`` of the same bundle.

Both are measured in turn, round by round, in one process. Run as root: ``python benchmarks/bench_start.py [ROUNDS] [IDLE_S]``. An idle gap before each
start shows what a quiet node pays; without it, starts follow each other at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.host.oci_lab import OneImage, backend, bundle_of, handle, remains, shell
from zlayer_driver.backends.oci_steps import STEPS, Making, Step

RUNC = shutil.which("runc") or "runc"


def timed(step: Step, spent: dict[str, list[float]]) -> Step:
    async def do(making: Making) -> None:
        began = time.perf_counter()
        await step.do(making)
        spent.setdefault(step.name, []).append(time.perf_counter() - began)

    return Step(step.name, do, step.undo)


def bare(bundle: Path, state: Path, name: str) -> float:
    """Seconds from nothing to running, by the runtime alone; the container is removed outside the measured time."""
    began = time.perf_counter()
    for verb in (("create", "--bundle", str(bundle), name), ("start", name)):
        subprocess.run([RUNC, "--root", str(state), *verb], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    spent = time.perf_counter() - began
    subprocess.run([RUNC, "--root", str(state), "delete", "--force", name], check=True)
    return spent


async def measure(root: Path, rounds: int, idle_s: float) -> None:
    images = OneImage(root / "layers")
    images.fill()
    spent: dict[str, list[float]] = {}
    oci = backend(root, images, steps=tuple(timed(step, spent) for step in STEPS))
    model = handle("model", await oci.start(shell("model", "exec sleep 1000")))
    await oci.signal(model, "KILL")
    await oci.wait(model)
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(rounds):
        await asyncio.sleep(idle_s)
        theirs.append(bare(bundle_of(root, "model").dir, root / "bare", f"bare-{number}"))
        await asyncio.sleep(idle_s)
        began = time.perf_counter()
        task = handle(f"task-{number}", await oci.start(shell(f"task-{number}", "exec sleep 1000")))
        ours.append(time.perf_counter() - began)
        await oci.destroy(task)
    await oci.destroy(model)
    report(ours, theirs, {name: values[1:] for name, values in spent.items()})
    if left := remains(root):
        sys.exit(f"left behind: {left}")


def report(ours: list[float], theirs: list[float], steps: dict[str, list[float]]) -> None:
    print(f"load {os.getloadavg()[0]:.1f}, {len(ours)} rounds; milliseconds: median, least")
    rows = {"bare create + start": theirs, "our start": ours, **{f"  of it {name}": values for name, values in steps.items()}}
    for name, values in rows.items():
        print(f"{name:22} {1e3 * statistics.median(values):7.1f} {1e3 * min(values):7.1f}")
    print(f"ratio {statistics.median(ours) / statistics.median(theirs):.2f} (of the least {min(ours) / min(theirs):.2f})")


def main() -> None:
    rounds, idle_s = int(sys.argv[1]) if len(sys.argv) > 1 else 30, float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    root = Path(tempfile.mkdtemp(prefix="zlayer-bench-"))
    try:
        asyncio.run(measure(root, rounds, idle_s))
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
