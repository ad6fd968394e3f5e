"""Address translation: containers reach the world by their node's address, and the world reaches them by the node's ports."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.host.overlay_lab import Host, lab, ping, run
from zlayer_driver.errors import InvalidSpec, NetworkError
from zlayer_driver.host import netns, nftables
from zlayer_driver.model import GroupPort
from zlayer_driver.overlay.inspection import look
from zlayer_driver.overlay.networks import Networks
from zlayer_driver.overlay.overlay import Overlay
from zlayer_driver.overlay.plan import Subnets
from zlayer_driver.readings import PortMapping

pytestmark = pytest.mark.needs("root", "ip", "nsenter", "busybox")

WORLD = {4: "10.199.0.99", 6: "fd99::99"}
NODE = {4: "10.199.0.1", 6: "fd99::1"}
_HOOKS = 12  # NFNL_SUBSYS_HOOK: of tables and transactions it says what the kernel says of a subsystem that it lacks


@dataclass
class Site:
    """One node, and a machine beside it that knows nothing of the overlay."""

    host: Host
    world: Path
    workers: list[netns.Worker] = field(default_factory=list)

    def overlay(self, **wanted: object) -> Overlay:
        return self.host.overlay(**({"publish": True} | wanted))

    async def answer(self, place: Path, says: bytes, port: int = 8080) -> Server:
        worker = self.worker(place)
        return Server(await worker.run(_listen, port), worker, says)

    async def ask(self, place: Path, server: Server, address: str, port: int, kind: socket.SocketKind, wait_s: float = 5) -> bytes | None:
        """What the server answers to a request from ``place``; ``None`` if it never came."""
        client = await self.worker(place).run(_request, address, port, kind, wait_s)
        with client:
            return await server.worker.run(server.answer, client, kind, wait_s) if client.fileno() >= 0 else None

    def worker(self, place: Path) -> netns.Worker:
        self.workers.append(made := netns.Worker(str(place)))
        return made


def _listen(port: int) -> tuple[socket.socket, socket.socket]:
    tcp, udp = (
        socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True),
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    )
    udp.bind(("::", port))
    return tcp, udp


def _request(address: str, port: int, kind: socket.SocketKind, wait_s: float) -> socket.socket:
    client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    client.settimeout(wait_s)
    try:
        client.connect((address, port))
        client.send(b"?")
    except OSError:
        client.close()
    return client


@dataclass
class Server:
    """Listens in a namespace for TCP and UDP, and answers one request with its own words and where it came from."""

    sockets: tuple[socket.socket, socket.socket]
    worker: netns.Worker
    says: bytes

    def answer(self, client: socket.socket, kind: socket.SocketKind, wait_s: float) -> bytes | None:
        tcp, udp = self.sockets
        tcp.settimeout(wait_s)
        udp.settimeout(wait_s)
        try:
            if kind == socket.SOCK_DGRAM:
                _, peer = udp.recvfrom(16)
                udp.sendto(self._words(peer[0]), peer)
            else:
                connection, peer = tcp.accept()
                with connection:
                    connection.send(self._words(peer[0]))
            return client.recv(100)
        except OSError:
            return None

    def _words(self, peer: str) -> bytes:
        return self.says + b" " + peer.removeprefix("::ffff:").encode()

    def close(self) -> None:
        for each in self.sockets:
            each.close()


@pytest.fixture
async def site(tmp_path: Path, no_fd_leak: object) -> AsyncIterator[Site]:
    async with lab(tmp_path) as made:
        host = made.host(1)
        world = tmp_path / "world"
        netns.make(world)
        run(["ip", "link", "add", "portw", "type", "veth", "peer", "name", "un0", "netns", str(world)], namespace=made.switch)
        run(["ip", "link", "set", "portw", "master", "sw0", "up"], namespace=made.switch)
        for place, address in ((world, WORLD), (host.namespace, NODE)):
            run(["ip", "link", "set", "un0", "up"], namespace=place)
            run(["ip", "addr", "add", f"{address[6]}/64", "dev", "un0", "nodad"], namespace=place)
        run(["ip", "addr", "add", f"{WORLD[4]}/24", "dev", "un0"], namespace=world)
        made_site = Site(host, world)
        yield made_site
        for worker in made_site.workers:
            worker.close()
        netns.remove(world)


def ports(*numbers: tuple[int, int], address: str = "") -> list[PortMapping]:
    return [PortMapping(to, port, address, protocol) for port, to in numbers for protocol in ("tcp", "udp")]


async def attached(overlay: Overlay, host: Host, name: str) -> tuple[Path, Sequence[object]]:
    place = host.container(name)
    return place, (await overlay.attach(name, str(place))).addresses


async def test_containers_reach_the_world_by_their_nodes_address(site: Site) -> None:
    overlay = site.overlay(default_route=True, masquerade=True, publish=False)
    place, _ = await attached(overlay, site.host, "c")
    assert all(ping(place, address) for address in WORLD.values())
    await overlay.call(lambda core: nftables.change([nftables.table_gone(core.plan.bridge)]))  # as a firewall does that starts anew
    assert not ping(place, WORLD[4], wait_s=1)
    assert await failing_hops(site.host) == ["translation"]
    await attached(overlay, site.host, "next")
    assert ping(place, WORLD[4])
    assert await failing_hops(site.host) == []


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
async def test_a_port_of_the_node_leads_to_the_container(site: Site, kind: socket.SocketKind) -> None:
    """The container has no way back to the world but through the node, which therefore asks in its own name."""
    overlay = site.overlay()
    place, _ = await attached(overlay, site.host, "web")
    await overlay.publish("web", [*ports((80, 8080), address=NODE[4]), *ports((80, 8080), address=NODE[6])])
    server = await site.answer(place, b"web")
    for version, own in ((4, b"10.88.1.1"), (6, b"fd88:0:0:1::1")):
        for client in (site.world, site.host.namespace):
            assert await site.ask(client, server, NODE[version], 80, kind) == b"web " + own, client
    assert await site.ask(site.world, server, NODE[4], 81, kind, wait_s=0.2) is None
    await overlay.detach("web")
    assert await site.ask(site.world, server, NODE[4], 80, kind, wait_s=0.2) is None
    server.close()


async def test_with_a_default_route_the_container_sees_who_asks_unless_it_is_a_neighbour(site: Site) -> None:
    overlay = site.overlay(default_route=True)
    place, _ = await attached(overlay, site.host, "web")
    beside, _ = await attached(overlay, site.host, "beside")
    await overlay.publish("web", ports((80, 8080)))
    server = await site.answer(place, b"web")
    for client, seen in ((site.world, b"10.199.0.99"), (beside, b"10.88.1.1"), (place, b"10.88.1.1")):
        assert await site.ask(client, server, NODE[4], 80, socket.SOCK_STREAM) == b"web " + seen
    server.close()


async def test_ports_outlive_the_plugin_and_end_with_their_container(site: Site) -> None:
    first = site.overlay()
    kept, _ = await attached(first, site.host, "kept")
    gone, _ = await attached(first, site.host, "gone")
    await first.publish("kept", ports((80, 8080)))
    await first.publish("gone", ports((90, 8080), (91, 8080)))
    await site.host.close()
    netns.remove(gone)
    server = await site.answer(kept, b"kept")
    assert await site.ask(site.world, server, NODE[4], 80, socket.SOCK_STREAM) is not None
    second = site.overlay()
    await second.open()
    assert await entries(second) == {80: "10.88.1.2"}
    assert await site.ask(site.world, server, NODE[4], 80, socket.SOCK_STREAM) is not None
    server.close()
    await second.detach("kept")
    assert await entries(second) == {}
    await second.call(lambda core: core.netns.reap())
    with pytest.raises(NetworkError, match="cannot delete the nftables table"):
        await second.call(lambda core: nftables.change([nftables.table_gone(core.plan.bridge)]))


async def test_the_ports_of_an_allocation_are_published_for_both_protocols_and_end_with_its_network(site: Site) -> None:
    overlay = site.overlay()
    networks = Networks(overlay)
    await networks.create("alloc-1", "")
    await networks.publish("alloc-1", [GroupPort("http", 20080, 80), GroupPort("dns", 20053, 53, NODE[4])])
    assert await entries(overlay) == await entries(overlay, nftables.UDP) == {20080: "10.88.1.2", 20053: "10.88.1.2"}
    for port in (GroupPort("x", 0, 80), GroupPort("x", 80, 1 << 16), GroupPort("x", 80, 80, "nowhere")):
        with pytest.raises(InvalidSpec, match="port 'x' cannot lead"):
            await networks.publish("alloc-1", [port])
    await networks.destroy("alloc-1")
    assert await entries(overlay) == {}


async def test_ports_are_changed_as_a_whole_and_the_last_owner_has_them(site: Site) -> None:
    overlay = site.overlay()
    for name in ("one", "two"):
        await attached(overlay, site.host, name)
    await overlay.publish("one", ports((80, 8080), (81, 8081)))
    await overlay.publish("one", ports((81, 9091), (82, 8082)))
    assert await entries(overlay) == {81: "10.88.1.2", 82: "10.88.1.2"}
    await overlay.publish("two", ports((81, 8081)))
    assert await entries(overlay) == {81: "10.88.1.3", 82: "10.88.1.2"}
    await overlay.detach("one")
    assert await entries(overlay) == {81: "10.88.1.3"}
    with pytest.raises(NetworkError, match="has no namespace here"):
        await overlay.publish("one", ports((82, 8082)))


async def test_a_port_of_a_family_that_the_container_has_not_is_refused(site: Site) -> None:
    overlay = site.overlay(network=Subnets.of("10.88.0.0/16", None), subnets=Subnets.of("10.88.1.0/24", None))
    await attached(overlay, site.host, "c")
    with pytest.raises(NetworkError, match=r"port 80 of fd99::1 cannot lead to a container that has no IPv6 address"):
        await overlay.publish("c", ports((80, 8080), address=NODE[6]))
    assert await entries(overlay) == {}


async def test_a_plan_that_wants_none_of_it_clears_the_table_of_an_earlier_one(site: Site) -> None:
    overlay = site.overlay()
    await attached(overlay, site.host, "c")
    await overlay.publish("c", ports((80, 8080)))
    await site.host.close()
    plain = site.overlay(publish=False)
    await plain.publish("c", ports((80, 8080)))
    assert await entries(plain) == {}
    masked = site.overlay(publish=False, masquerade=True, default_route=True)
    await masked.open()
    assert await entries(masked) == {}


async def test_a_kernel_without_nftables_is_said_so_and_nothing_is_attached(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay, place = site.overlay(), site.host.container("c")
    monkeypatch.setattr(nftables, "_NFTABLES", _HOOKS)
    monkeypatch.setattr(nftables, "_SUBSYSTEM", _HOOKS << 8)
    with pytest.raises(NetworkError, match="this kernel has no nftables"):
        await overlay.attach("c", str(place))
    assert site.host.links() == []
    assert await overlay.call(lambda core: core.leases.all()) == []


async def failing_hops(host: Host) -> list[str]:
    return await look(lambda seen: [hop.hop for hop in seen.check() if not hop.ok], host.state_dir, netns_path=str(host.namespace))


async def entries(overlay: Overlay, protocol: int = nftables.TCP) -> dict[int, str]:
    """The published ports, and to which address they lead."""
    found = await overlay.call(lambda core: nftables.read_elements(core.plan.bridge, "ports4"))
    return {int.from_bytes(key[8:10], "big"): str(ip_address(value[:4])) for key, value in found.items() if key[4] == protocol}
