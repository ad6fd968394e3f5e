"""Three nodes on one underlay: containers reach each other by address, over both transports, while peers come and go."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.host.overlay_lab import Host, Lab, flowing, lab, ping, run
from zlayer_driver.config import Transport
from zlayer_driver.errors import NetworkError
from zlayer_driver.host import netns
from zlayer_driver.host.wireguard import Userspace
from zlayer_driver.overlay.host_netns import Attachment
from zlayer_driver.overlay.inspection import look
from zlayer_driver.overlay.overlay import KEY_FILE
from zlayer_driver.overlay.plan import INTERFACE, PORTS, Address, Peer, Subnets

pytestmark = [pytest.mark.needs("root", "ip", "nsenter", "busybox"), pytest.mark.timeout(180)]

VXLAN_ONLY = pytest.mark.parametrize("made", [Transport.VXLAN], indirect=True)
INNER_MTU = {Transport.VXLAN: 1450, Transport.WIREGUARD: 1440}


class Node:
    """A host with one attached container."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.place = host.container("c")
        self.attached: Attachment | None = None
        self.join()

    def join(self, **changes: object) -> None:
        """A new process's view of the overlay."""
        self.overlay = self.host.overlay(**changes)

    def as_peer(self) -> Peer:
        return self.overlay.plan.as_peer(self.host.public_key)

    async def start(self) -> None:
        self.attached = await self.overlay.attach("c", str(self.place))

    @property
    def addresses(self) -> tuple[Address, ...]:
        assert self.attached
        return self.attached.addresses


async def introduce(nodes: list[Node]) -> None:
    for node in nodes:
        await node.overlay.set_peers([other.as_peer() for other in nodes if other is not node])


@pytest.fixture(params=[Transport.VXLAN, pytest.param(Transport.WIREGUARD, marks=pytest.mark.needs("wireguard-go"))])
async def made(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab(tmp_path, request.param) as made:
        yield made


@pytest.fixture
async def nodes(made: Lab) -> list[Node]:
    found = [Node(made.host(number)) for number in (1, 2, 3)]
    for node in found:
        await node.start()
    await introduce(found)
    return found


async def reaches(node: Node, other: Node, *, count: int = 1, wait_s: int = 10) -> list[object]:
    """The addresses of the other container that answered. WireGuard repeats a handshake that came too early after five seconds."""
    return [address for address in other.addresses if await asyncio.to_thread(ping, node.place, address, count=count, wait_s=wait_s)]


async def test_containers_reach_each_other_in_both_families(nodes: list[Node]) -> None:
    for node in nodes:
        for other in nodes:
            assert await reaches(node, other) == [*other.addresses], (node.place, other.place)
    assert await asyncio.to_thread(ping, nodes[0].host.namespace, nodes[1].addresses[0])


@pytest.mark.parametrize("transport", [Transport.VXLAN, pytest.param(Transport.WIREGUARD, marks=pytest.mark.needs("wireguard-go"))])
async def test_an_underlay_of_ipv6_carries_both_families(tmp_path: Path, transport: Transport) -> None:
    async with lab(tmp_path, transport, underlay=6) as made:
        one, two = Node(made.host(1)), Node(made.host(2))
        for node in (one, two):
            await node.start()
        await introduce([one, two])
        assert len(await reaches(one, two)) == 2
        shown = await asyncio.to_thread(run, ["ip", "link", "show", INTERFACE], namespace=one.place)
        assert f"mtu {INNER_MTU[transport] - 20} " in shown
        hops = await look(lambda seen: list(seen.check()), one.host.state_dir, netns_path=str(one.host.namespace))
        assert all(hop.ok for hop in hops), hops


async def test_packets_as_large_as_the_underlay_leaves_arrive_whole(nodes: list[Node]) -> None:
    one, two, _ = nodes
    sender, receiver = netns.Worker(str(one.place)), netns.Worker(str(two.place))
    for address in two.addresses:
        with await receiver.run(_udp, address.version) as at, await sender.run(_udp, address.version) as out:
            at.bind((str(address), 9000))
            most = INNER_MTU[one.host.transport] - _HEADERS_BYTES[address.version]
            assert await asyncio.to_thread(_arrives, out, at, bytes(most), (str(address), 9000)) == most
            with pytest.raises(OSError, match="Message too long"):
                out.sendto(bytes(most + 1), (str(address), 9000))
    sender.close()
    receiver.close()


_HEADERS_BYTES = {4: 28, 6: 48}  # of IP and UDP
_TRIES = 5


def _arrives(out: socket.socket, at: socket.socket, packet: bytes, where: tuple[str, int]) -> int:
    """Bytes that arrive. A datagram may be lost, as while keys are exchanged; one that does not fit always is."""
    for _ in range(_TRIES):
        assert out.sendto(packet, where) == len(packet)
        with suppress(TimeoutError):
            return len(at.recv(2048))
    raise AssertionError(f"none of {_TRIES} packets of {len(packet)} bytes arrived")


def _udp(version: int) -> socket.socket:
    """A socket of the thread's namespace whose datagrams are never split."""
    made = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    made.settimeout(5)
    level, option = (socket.IPPROTO_IP, 10) if version == 4 else (socket.IPPROTO_IPV6, 23)  # IP_MTU_DISCOVER, IPV6_MTU_DISCOVER
    made.setsockopt(level, option, 2)  # IP_PMTUDISC_DO
    return made


@VXLAN_ONLY
async def test_nothing_is_broadcast_between_nodes(made: Lab) -> None:
    """A container that asks for an address that nobody has sends nothing to the other nodes. WireGuard carries no broadcasts by its nature."""
    one, two = Node(made.host(1)), Node(made.host(2))
    for node in (one, two):
        await node.start()
    await introduce([one, two])
    before = _received(two)
    nobody = ("10.88.1.200", "10.88.9.9", "fd88:0:0:1::c8", "fd88:0:0:9::9")
    assert not any(await asyncio.gather(*(asyncio.to_thread(ping, one.place, address, wait_s=1) for address in nobody)))
    assert _received(two) == before


async def test_peers_join_and_leave_without_a_packet_of_the_others_lost(made: Lab, nodes: list[Node]) -> None:
    one, two, three = nodes
    assert len(await reaches(one, two)) == 2  # neighbours and handshakes are there
    async with flowing(one.place, two.addresses):
        late = Node(made.host(4))
        await late.start()
        await introduce([one, two, three, late])
        assert len(await reaches(late, one)) == 2
        await introduce([one, two, late])
        assert not await reaches(one, three, wait_s=1)
        await introduce([one, two])


async def test_a_peer_that_is_set_otherwise_keeps_no_node_from_the_others(nodes: list[Node], caplog: pytest.LogCaptureFixture) -> None:
    one, two, three = nodes
    await one.overlay.set_peers([replace(three.as_peer(), endpoint=ip_address("2001:db8::1")), two.as_peer()])
    assert len(await reaches(one, two)) == 2
    assert "the overlay is without peer n3: its endpoint 2001:db8::1 is of another family" in caplog.text
    rows = await look(lambda seen: list(seen.peers()), one.host.state_dir, netns_path=str(one.host.namespace))
    assert [(row["peer"], row["state"]) for row in rows] == [("n2", "ok")]


async def test_a_node_that_crashed_and_came_back_is_reached_again(made: Lab, nodes: list[Node]) -> None:
    one, two, _ = nodes
    await two.host.close()
    two.host.crash()
    made.unplug(two.host)
    assert not await reaches(one, two, wait_s=1)
    made.plug(two.host)
    reborn = nodes[1] = Node(two.host)
    await reborn.start()
    await introduce(nodes)
    assert len(await reaches(reborn, one)) == 2
    assert len(await reaches(one, reborn)) == 2


async def test_the_next_process_takes_over_without_a_packet_lost(nodes: list[Node]) -> None:
    one, two, three = nodes
    assert len(await reaches(one, two)) == 2  # neighbours and handshakes are there
    async with flowing(one.place, two.addresses):
        await one.host.close()
        one.join(peers=(two.as_peer(), three.as_peer()))
        await one.overlay.open()
    assert (await one.overlay.attach("c", str(one.place))).addresses == one.addresses


async def test_settings_that_changed_hold_from_the_next_process_on(made: Lab) -> None:
    """Links that an earlier process made by others make way, and so does a key whose file was deleted."""
    one, two = Node(made.host(1)), Node(made.host(2))
    for node in (one, two):
        await node.start()
    await introduce([one, two])
    assert len(await reaches(one, two)) == 2
    moved = Subnets.of("10.88.7.0/24", "fd88:0:0:7::/64")
    for node, changes in ((one, {}), (two, {"subnets": moved})):
        await node.host.close()
        (node.host.state_dir / KEY_FILE).unlink(missing_ok=True)
        node.join(port=0x1234, vni=43, **changes)
        await node.start()
        assert ":1234 " in run(["cat", "/proc/net/udp"], namespace=node.host.namespace)
    assert two.addresses[0] in moved.v4
    await introduce([one, two])
    assert len(await reaches(one, two)) == 2


@VXLAN_ONLY
@pytest.mark.needs("wireguard-go")
async def test_a_transport_that_changed_takes_its_device_along(made: Lab) -> None:
    host = made.host(1)
    for transport in (Transport.VXLAN, Transport.WIREGUARD, Transport.VXLAN):
        overlay = host.overlay(transport=transport, port=PORTS[transport])
        await overlay.open()
        links = await asyncio.to_thread(run, ["ip", "-br", "link"], namespace=host.namespace)
        assert [line.split()[0] for line in links.splitlines() if line.startswith(f"{overlay.plan.bridge}-")] == [overlay.plan.device]
        await host.close()


def test_a_node_that_cannot_make_a_tunnel_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NetworkError, match="install wireguard-go, or set the overlay's transport to vxlan"):
        Userspace("none0").ensure()


@VXLAN_ONLY
@pytest.mark.needs("iperf3")
async def test_throughput_is_that_of_a_tunnel_made_by_hand(made: Lab) -> None:
    """Not a benchmark: a tunnel that falls back to fragments or software loops is slower by an order of magnitude.

    WireGuard's speed is the userspace program's.
    """
    one, two = Node(made.host(1)), Node(made.host(2))
    for node in (one, two):
        await node.start()
    await introduce([one, two])
    ours = await asyncio.to_thread(throughput, one.place, two.place, str(two.addresses[0]))
    underlay = await asyncio.to_thread(throughput, one.host.namespace, two.host.namespace, two.host.endpoint)
    assert ours > underlay / 20


def _received(node: Node) -> str:
    shown = json.loads(run(["ip", "-j", "-s", "link", "show", node.overlay.plan.device], namespace=node.host.namespace))
    return str(shown[0]["stats64"]["rx"])


def throughput(client: Path, server: Path, address: str) -> float:
    """Bits a second over a second of TCP."""
    argv = ["nsenter", f"--net={server}", "iperf3", "-s", "-1", "--forceflush"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as listening:
        assert listening.stdout
        while "Server listening" not in listening.stdout.readline():
            assert listening.poll() is None
        found = json.loads(run(["iperf3", "-c", address, "-t", "1", "-J"], namespace=client))
        listening.stdout.read()
    return float(found["end"]["sum_received"]["bits_per_second"])
