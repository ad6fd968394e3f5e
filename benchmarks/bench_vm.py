"""How long our start of a VM takes beside QEMU alone with the same command line, what a command in it costs, and what memory it takes.

Both boots are measured in turn, in one process. QEMU alone counts to the agent's first word; ours to the container's process running.
Run as root: ``python -m benchmarks.bench_vm [ROUNDS]``.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.host.oci_lab import OneImage, remains, shell
from tests.host.vm_lab import backend, bundle_of, clear, handle, machines
from zlayer_driver.host.processes import command_lines
from zlayer_driver.model import Handle, Network, Resources

MEMORY = 128 << 20
TRUE = ["/bin/true"]


def bare(argv: list[str]) -> float:
    """Seconds from nothing to the agent."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        began = time.perf_counter()
        command = [part.replace("{control}", str(theirs.fileno())) for part in argv]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, pass_fds=(theirs.fileno(),)) as qemu:
            ours.recv(1)
            spent = time.perf_counter() - began
            qemu.kill()
    return spent


def resident(root: Path, task: Handle) -> tuple[int, int]:
    """Bytes that a VM's processes have to themselves (PSS), and what its QEMU was told to give the guest."""
    bundle = bundle_of(root, task.task_id)
    total = guest = 0
    for pid, argv in command_lines():
        if bundle.id.encode() in argv:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += 1024 * sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
            if b"qemu" in argv[0]:
                guest = int(argv[argv.index(b"-m") + 1][:-1]) << 20
    return total, guest


async def measure(root: Path, rounds: int) -> None:
    images = OneImage(root / "layers")
    images.fill()
    vms = backend(root, images, machines(root))
    spec = shell("one", "exec sleep 1000", resources=Resources(memory_bytes=MEMORY), network=Network(mode="none"))
    ours, theirs, commands, memory = [], [], [], []
    task = handle("one", await vms.start(spec))  # makes what is made once
    argv = json.loads((bundle_of(root, "one").dir / "vm.json").read_bytes())["qemu"]
    await vms.destroy(task)
    for _ in range(rounds):
        theirs.append(bare(argv))
        began = time.perf_counter()
        task = handle("one", await vms.start(spec))
        ours.append(time.perf_counter() - began)
        for _ in range(10):
            began = time.perf_counter()
            await vms.exec(task, TRUE, timeout_s=60)
            commands.append(time.perf_counter() - began)
        total, guest = resident(root, task)
        memory.append(total - guest)
        await vms.destroy(task)
    print(f"load {os.getloadavg()[0]:.1f}, {rounds} rounds; milliseconds: median, least")
    for name, values in (("bare QEMU to the agent", theirs), ("our start", ours), ("a command", commands)):
        print(f"{name:24} {1e3 * statistics.median(values):8.1f} {1e3 * min(values):8.1f}")
    print(f"ratio {statistics.median(ours) / statistics.median(theirs):.2f} (of the least {min(ours) / min(theirs):.2f})")
    print(f"host memory beyond the guest's: {max(memory) / (1 << 20):.0f} MiB at most")
    if left := remains(root):
        sys.exit(f"left behind: {left}")


def main() -> None:
    root = Path(tempfile.mkdtemp(prefix="zlayer-bench-"))
    try:
        asyncio.run(measure(root, int(sys.argv[1]) if len(sys.argv) > 1 else 8))
    finally:
        asyncio.run(clear(root))
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
