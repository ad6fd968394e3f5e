"""TCP throughput between containers of two nodes, through our VXLAN and through one made by hand, in turn.

The nodes are network namespaces on one machine. Run as root, with iperf3: ``python benchmarks/bench_overlay.py [ROUNDS]``.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
from pathlib import Path

from tests.host.overlay_lab import Host, Lab, lab, run
from tests.host.test_overlay_nodes import Node, introduce, throughput


def by_hand(host: Host, other: Host) -> Path:
    """A bridge, a VXLAN device that floods to the other node, and a container, as a tutorial makes them."""
    place = host.container("by-hand")
    for line in (
        "ip link add hand0 type bridge",
        f"ip link add handvx type vxlan id 77 local {host.endpoint} remote {other.endpoint} dstport 4790 dev un0",
        "ip link set handvx master hand0 up",
        "ip link set hand0 up",
        f"ip link add hand1 mtu 1450 type veth peer name eth0 mtu 1450 netns {place}",
        "ip link set hand1 master hand0 up",
    ):
        run(line.split(), namespace=host.namespace)
    run(["ip", "addr", "add", f"10.66.0.{host.number}/24", "dev", "eth0"], namespace=place)
    run(["ip", "link", "set", "eth0", "up"], namespace=place)
    return place


async def measure(made: Lab, rounds: int) -> tuple[list[float], list[float]]:
    nodes = [Node(made.host(number)) for number in (1, 2)]
    for node in nodes:
        await node.start()
    await introduce(nodes)
    one, two = by_hand(nodes[0].host, nodes[1].host), by_hand(nodes[1].host, nodes[0].host)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(throughput(nodes[0].place, nodes[1].place, str(nodes[1].addresses[0])))
        theirs.append(throughput(one, two, "10.66.0.2"))
    return ours, theirs


async def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory(prefix="zlayer-bench-") as root:
        async with lab(Path(root)) as made:
            ours, theirs = await measure(made, rounds)
    print(f"load {os.getloadavg()[0]:.1f}, {rounds} rounds of a second; Gbit/s: median, most")
    for name, values in (("ours", ours), ("by hand", theirs)):
        print(f"{name:8} {statistics.median(values) / 1e9:6.2f} {max(values) / 1e9:6.2f}")
    print(f"{statistics.median(ours) / statistics.median(theirs):.2f} of a VXLAN made by hand")


if __name__ == "__main__":
    asyncio.run(main())
