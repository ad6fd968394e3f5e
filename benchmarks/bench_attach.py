"""How long attaching a network namespace takes beside CNI (bridge and host-local) and a bare netlink sequence without bookkeeping.

All are measured in turn, round by round, in one process, on bridges of a namespace that is made for it. Run as root:
``python benchmarks/bench_attach.py [ROUNDS]``; the CNI plugins are looked for in ``CNI_PATH``, else in /usr/lib/cni. Our deletions happen half a second
after a detach, many at once; what one of fifty links costs is shown last.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from unittest.mock import patch

from tests.host.overlay_lab import Host, lab, run
from zlayer_driver.host import netlink_messages as messages
from zlayer_driver.host import netns
from zlayer_driver.host.netlink import Batch, Socket
from zlayer_driver.overlay.overlay import Overlay

CNI_PATH = os.environ.get("CNI_PATH", "/usr/lib/cni")
Timed = Callable[[], Awaitable[None]]


class Bare:
    """The same two sends with fixed values, on messages encoded before the clock starts, and a deletion of one link."""

    def __init__(self, bridge: int) -> None:
        self._bridge = bridge
        self._socket = Socket()

    def prepare(self, place: Path) -> None:
        """Encodes everything: what is measured is the kernel's part alone."""
        self._fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        with patch.object(messages, "_ONE_QUEUE", ()):  # a pair as everybody makes it
            self._pair = messages.veth(
                "bare0", bridge=self._bridge, mtu=1450, peer="eth0", peer_mac="02:00:00:00:00:01", peer_netns_fd=self._fd
            )
        gateway = ip_address("10.77.0.1"), ip_address("fd77::1")
        self._inside = Batch.join(
            [
                messages.link_up(1),
                messages.address(2, ip_address("10.77.0.2"), 16),
                messages.address(2, ip_address("fd77::2"), 64),
                messages.link_up(2),
                messages.route(ip_network("10.76.0.0/16"), link=2, gateway=gateway[0]),
                messages.route(ip_network("fd76::/64"), link=2, gateway=gateway[1]),
            ]
        )
        self._gone = messages.link_gone("bare0")

    def attach(self) -> float:
        began = time.perf_counter()
        self._socket.send(self._pair)
        with netns.visit(self._fd), Socket() as inside:
            inside.send(self._inside)
        return time.perf_counter() - began

    def detach(self) -> float:
        began = time.perf_counter()
        self._socket.send(self._gone)
        spent = time.perf_counter() - began
        os.close(self._fd)
        return spent

    def close(self) -> None:
        self._socket.close()


def cni(host: Host, verb: str, place: Path, name: str) -> float:
    config = {
        "cniVersion": "0.4.0",
        "name": "peer",
        "type": "bridge",
        "bridge": "cnibr0",
        "mtu": 1450,
        "ipam": {
            "type": "host-local",
            "dataDir": str(host.root / "cni"),
            "ranges": [[{"subnet": "10.79.0.0/16", "gateway": "10.79.0.1"}], [{"subnet": "fd79::/64", "gateway": "fd79::1"}]],
            "routes": [{"dst": "10.78.0.0/16"}, {"dst": "fd78::/64"}],
        },
    }
    env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": name, "CNI_NETNS": str(place), "CNI_IFNAME": "eth0", "CNI_PATH": CNI_PATH}
    text = json.dumps(config).encode()
    began = time.perf_counter()
    with netns.opened(str(host.namespace)) as there, netns.visit(there):
        subprocess.run([f"{CNI_PATH}/bridge"], input=text, env=env | {"PATH": os.environ["PATH"]}, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


async def clock(work: Awaitable[object]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def measure(host: Host, rounds: int) -> dict[str, list[float]]:
    overlay = host.overlay()
    await overlay.open()
    run(["ip", "link", "add", "barebr0", "type", "bridge"], namespace=host.namespace)
    run(["ip", "link", "set", "barebr0", "up"], namespace=host.namespace)
    found: dict[str, list[float]] = {}
    worker = netns.Worker(str(host.namespace))
    bare = await worker.run(lambda: Bare(socket.if_nametoindex("barebr0")))
    for number in range(rounds):
        for kind in ("ours", "bare", "cni"):
            place = host.container(f"{kind}-{number}")
            attach, detach = await _round(kind, overlay, bare, worker, host, place)
            found.setdefault(f"{kind} attach", []).append(attach)
            found.setdefault(f"{kind} detach", []).append(detach)
            netns.remove(place)
    await worker.run(bare.close)
    worker.close()
    return found


async def _round(kind: str, overlay: Overlay, bare: Bare, worker: netns.Worker, host: Host, place: Path) -> tuple[float, float]:
    match kind:
        case "ours":
            return await clock(overlay.attach(place.name, str(place))), await clock(overlay.detach(place.name))
        case "bare":
            await worker.run(bare.prepare, place)
            return await worker.run(bare.attach), await worker.run(bare.detach)
        case _:
            return cni(host, "ADD", place, place.name), cni(host, "DEL", place, place.name)


async def crowd(host: Host, size: int) -> tuple[float, float]:
    """Seconds for ``size`` attaches at once, and for the deletion of their links after they were detached."""
    overlay = host.overlay()
    await overlay.open()
    places = [host.container(f"crowd-{number}") for number in range(size)]
    spent = await clock(asyncio.gather(*(overlay.attach(place.name, str(place)) for place in places)))
    await asyncio.gather(*(overlay.detach(place.name) for place in places))
    return spent, await clock(overlay.call(lambda core: core.netns.reap()))


def report(found: dict[str, list[float]]) -> None:
    print(f"load {os.getloadavg()[0]:.1f}, {len(found['ours attach'])} rounds; milliseconds: median, p99, least")
    for name, values in found.items():
        ranked = sorted(values)
        print(f"{name:26} {1e3 * statistics.median(ranked):8.2f} {1e3 * ranked[int(len(ranked) * 0.99)]:8.2f} {1e3 * ranked[0]:8.2f}")
    for verb in ("attach", "detach"):
        ours, bare, peer = (statistics.median(found[f"{kind} {verb}"]) for kind in ("ours", "bare", "cni"))
        print(f"{verb}: {ours / bare:.2f} of a bare sequence, 1/{peer / ours:.1f} of CNI")


async def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory(prefix="zlayer-bench-") as root:
        async with lab(Path(root)) as made:
            host = made.host(1)
            report(await measure(host, rounds))
            spent, reaped = await crowd(host, 50)
            print(f"50 attaches at once: {1e3 * spent:.1f} ms; the deletion of their links: {1e3 * reaped:.1f} ms")


if __name__ == "__main__":
    asyncio.run(main())
