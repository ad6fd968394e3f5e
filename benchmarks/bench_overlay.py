"""TCP between containers of two nodes, through our VXLAN and through one made by hand, in turn. The nodes are network namespaces."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.conftest import Versus
from tests.host.overlay_lab import Host, lab, run
from tests.host.test_overlay_nodes import Node, introduce, throughput

pytestmark = [pytest.mark.needs("root", "ip", "nsenter", "iperf3"), pytest.mark.timeout(300)]
ROUNDS = 10


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


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory(prefix="zlayer-bench-") as root:
        context = lab(Path(root))
        made = runner.run(context.__aenter__())
        nodes = [Node(made.host(number)) for number in (1, 2)]
        for node in nodes:
            runner.run(node.start())
        runner.run(introduce(nodes))
        yield nodes
        runner.run(context.__aexit__(None, None, None))


def test_seconds_for_a_gigabit_between_nodes(nodes: list[Node], versus: Versus) -> None:
    """At least 0.9 of the throughput is at most 1.11 of the time."""
    one, two = by_hand(nodes[0].host, nodes[1].host), by_hand(nodes[1].host, nodes[0].host)

    def ours() -> float:
        return 1e9 / throughput(nodes[0].place, nodes[1].place, str(nodes[1].addresses[0]))

    versus(ours, lambda: 1e9 / throughput(one, two, "10.66.0.2"), against="a VXLAN made by hand", limit=1.11, rounds=ROUNDS)
