"""A guest that brings up its own WireGuard interface from what was pushed to it. Its place is taken by a namespace behind the node's underlay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.host.overlay_lab import Host, Lab, lab, ping, run
from zlayer_driver.config import Transport
from zlayer_driver.errors import InvalidSpec, Unsupported
from zlayer_driver.host import netns, wireguard
from zlayer_driver.overlay import keys
from zlayer_driver.overlay.guest import GuestManaged
from zlayer_driver.readings import GuestOverlay

pytestmark = pytest.mark.needs("root", "ip", "nsenter", "busybox", "wireguard-go")


class Agent:
    """What an agent in a guest does with its config."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.device = f"{host.plan().bridge}-gst"
        self.pushed: list[GuestOverlay] = []

    async def push(self, overlay: GuestOverlay) -> None:
        self.pushed.append(overlay)
        worker = netns.Worker(str(self.host.namespace))
        await worker.run(self._bring_up, overlay)
        worker.close()

    def _bring_up(self, overlay: GuestOverlay) -> None:
        wireguard.start(self.device)
        lines = [f"private_key={keys.raw(overlay.private_key).hex()}"]
        for peer in overlay.peers:
            lines += [
                f"public_key={keys.raw(peer['public_key']).hex()}",
                f"endpoint={peer['endpoint']}",
                f"allowed_ip={peer['allowed_ips']}",
                f"persistent_keepalive_interval={peer['persistent_keepalive_s']}",
            ]
        wireguard.configure(self.device, lines)
        run(["ip", "addr", "replace", f"{overlay.address}/32", "dev", self.device], namespace=self.host.namespace)
        run(["ip", "link", "set", self.device, "up", "mtu", overlay.peers[0]["mtu"]], namespace=self.host.namespace)
        run(["ip", "route", "replace", overlay.peers[0]["allowed_ips"], "dev", self.device], namespace=self.host.namespace)


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab(tmp_path, Transport.WIREGUARD) as made:
        yield made


async def test_a_guest_and_containers_on_its_and_another_node_reach_each_other(made: Lab) -> None:
    one, two, guest = made.host(1), made.host(2), made.host(9)
    agent = Agent(guest)
    public = [keys.load(host.state_dir / "wireguard.key").public for host in (one, two)]
    near, far = one.overlay(peers=(two.peer(public[1]),)), two.overlay(peers=(one.peer(public[0]),))
    beside, away = one.container("c"), two.container("c")
    neighbour, other = await near.attach("c", str(beside)), await far.attach("c", str(away))
    guests = GuestManaged(near)
    try:
        attached = await guests.attach("vm", agent.push)
        for address in (neighbour.addresses[0], other.addresses[0]):
            assert ping(guest.namespace, address, wait_s=10)
        for place in (beside, away):
            assert ping(place, attached.addresses[0], wait_s=10)
        await near.set_peers([two.peer(public[1])])
        assert ping(away, attached.addresses[0], wait_s=10)
        assert await guests.attach("vm", agent.push) == attached
        assert agent.pushed[0] == agent.pushed[1]
        await guests.detach("vm")
        await guests.detach("vm")
        assert not ping(away, attached.addresses[0], wait_s=1)
        assert await guests.describe("vm") is None
    finally:
        wireguard.stop(agent.device)


async def test_a_push_that_fails_leaves_nothing(made: Lab) -> None:
    overlay = made.host(1).overlay()

    async def refuse(_: GuestOverlay) -> None:
        raise Unsupported("no agent")

    guests = GuestManaged(overlay)
    with pytest.raises(Unsupported, match="no agent"):
        await guests.attach("vm", refuse)
    assert await guests.describe("vm") is None
    assert list((overlay.state_dir / "guests").iterdir()) == []
    with pytest.raises(InvalidSpec):
        await guests.attach("../escape", refuse)


async def test_guests_need_wireguard(tmp_path: Path) -> None:
    async with lab(tmp_path) as plain:
        with pytest.raises(Unsupported, match="WireGuard"):
            GuestManaged(plain.host(1).overlay())
