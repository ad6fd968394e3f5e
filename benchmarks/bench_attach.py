"""Attaching network namespaces beside CNI (bridge and host-local) and beside a bare netlink sequence without any bookkeeping.

All of it happens on bridges of a namespace that is made for it. Ours counts from the event loop and back; the bare sequence counts in a thread
of that namespace, and both threads have just been at work when the clock starts. Our deletions come half a second after a detach, many at
once; what those of fifty cost is shown beside fifty attaches.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from unittest.mock import patch

import pytest

from benchmarks.conftest import Versus
from tests.host.overlay_lab import Host, lab, run
from zlayer_driver.host import netlink_messages as messages
from zlayer_driver.host import netns
from zlayer_driver.host.netlink import Batch, Socket
from zlayer_driver.overlay.overlay import Overlay

CNI_PATH = os.environ.get("CNI_PATH", "/usr/lib/cni")
pytestmark = [pytest.mark.needs("root", "ip", "nsenter", f"{CNI_PATH}/bridge"), pytest.mark.timeout(300)]
ROUNDS = 200
CROWD = 50

Spent = tuple[float, float]  # seconds of an attach, and of the detach after it


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


class Stage:
    """One node, with a bridge for each of those who attach."""

    def __init__(self, host: Host, runner: asyncio.Runner) -> None:
        self.host = host
        self.run = runner.run
        self.overlay: Overlay = host.overlay()
        self._numbers = itertools.count()
        self.run(self.overlay.open())
        run(["ip", "link", "add", "barebr0", "type", "bridge"], namespace=host.namespace)
        run(["ip", "link", "set", "barebr0", "up"], namespace=host.namespace)
        self._worker = netns.Worker(str(host.namespace))
        self._bare: Bare = self.run(self._worker.run(lambda: Bare(socket.if_nametoindex("barebr0"))))

    def close(self) -> None:
        self.run(self._worker.run(self._bare.close))
        self._worker.close()

    def container(self) -> Path:
        return self.host.container(f"bench-{next(self._numbers)}")

    def ours(self) -> Spent:
        return self.run(self._ours(self.container()))

    async def _ours(self, place: Path) -> Spent:
        await self.overlay.describe(place.name)
        attach = await clock(self.overlay.attach(place.name, str(place)))
        detach = await clock(self.overlay.detach(place.name))
        netns.remove(place)
        return attach, detach

    def bare(self) -> Spent:
        return self.run(self._by_netlink(self.container()))

    async def _by_netlink(self, place: Path) -> Spent:
        await self._worker.run(self._bare.prepare, place)
        attach = await self._worker.run(self._bare.attach)
        detach = await self._worker.run(self._bare.detach)
        netns.remove(place)
        return attach, detach

    def cni(self) -> Spent:
        place = self.container()
        spent = self._by_cni("ADD", place), self._by_cni("DEL", place)
        netns.remove(place)
        return spent

    def _by_cni(self, verb: str, place: Path) -> float:
        config = {
            "cniVersion": "0.4.0",
            "name": "peer",
            "type": "bridge",
            "bridge": "cnibr0",
            "mtu": 1450,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.host.root / "cni"),
                "ranges": [[{"subnet": "10.79.0.0/16", "gateway": "10.79.0.1"}], [{"subnet": "fd79::/64", "gateway": "fd79::1"}]],
                "routes": [{"dst": "10.78.0.0/16"}, {"dst": "fd78::/64"}],
            },
        }
        env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": place.name, "CNI_NETNS": str(place), "CNI_IFNAME": "eth0", "CNI_PATH": CNI_PATH}
        text = json.dumps(config).encode()
        began = time.perf_counter()
        with netns.opened(str(self.host.namespace)) as there, netns.visit(there):
            subprocess.run(
                [f"{CNI_PATH}/bridge"], input=text, env=env | {"PATH": os.environ["PATH"]}, check=True, stdout=subprocess.DEVNULL
            )
        return time.perf_counter() - began

    def crowd(self) -> float:
        """Seconds for many attaches at once. Their links are gone when this returns."""
        return self.run(self._crowd([self.container() for _ in range(CROWD)]))

    async def _crowd(self, places: list[Path]) -> float:
        spent = await clock(asyncio.gather(*(self.overlay.attach(place.name, str(place)) for place in places)))
        await asyncio.gather(*(self.overlay.detach(place.name) for place in places))
        await self.overlay.call(lambda core: core.netns.reap())
        for place in places:
            netns.remove(place)
        return spent


async def clock(work: Awaitable[object]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory(prefix="zlayer-bench-") as root:
        context = lab(Path(root))
        made = runner.run(context.__aenter__())
        stage = Stage(made.host(1), runner)
        yield stage
        stage.close()
        runner.run(context.__aexit__(None, None, None))


def part(work: Callable[[], Spent], index: int) -> Callable[[], float]:
    return lambda: work()[index]


def test_attach_beside_a_bare_sequence(stage: Stage, versus: Versus) -> None:
    versus(part(stage.ours, 0), part(stage.bare, 0), against="netlink without bookkeeping", limit=1.5, rounds=ROUNDS)


def test_attach_beside_cni(stage: Stage, versus: Versus) -> None:
    versus(part(stage.ours, 0), part(stage.cni, 0), against="CNI bridge, host-local", limit=0.2, rounds=ROUNDS)


def test_detach_beside_a_bare_deletion(stage: Stage, versus: Versus) -> None:
    versus(part(stage.ours, 1), part(stage.bare, 1), against="netlink without bookkeeping", limit=1.5, rounds=ROUNDS)


def test_detach_beside_cni(stage: Stage, versus: Versus) -> None:
    versus(part(stage.ours, 1), part(stage.cni, 1), against="CNI bridge, host-local", limit=0.2, rounds=ROUNDS)


def test_fifty_at_once_beside_fifty_in_turn(stage: Stage, versus: Versus) -> None:
    versus(stage.crowd, lambda: sum(stage.bare()[0] for _ in range(CROWD)), against="bare sequences, in turn", rounds=3)
