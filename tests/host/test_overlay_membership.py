"""Nodes that join the overlay through their block or through a real Nomad, and leave it when they lost their share."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.host.nomad_agent import empty
from tests.host.overlay_lab import Host, flowing, lab, ping, run
from zlayer_driver.config import OverlayBlock, parse
from zlayer_driver.errors import ConfigError, NetworkError
from zlayer_driver.nomad.client import Access, Nomad
from zlayer_driver.nomad.membership import Membership
from zlayer_driver.nomad.roster import PATH

pytestmark = [pytest.mark.needs("root", "ip", "nsenter", "busybox")]


def block(host: Host, **changes: Any) -> OverlayBlock:
    plan = host.plan()
    own = {"name": plan.name, "network": "10.88.0.0/16", "endpoint": host.endpoint, "bridge": plan.bridge}
    return parse(OverlayBlock, own | changes, what="overlay")


def member(host: Host, **changes: Any) -> Membership:
    return Membership(block(host, **changes), host.state_dir.parent, environment={}, netns_path=str(host.namespace))


async def test_a_block_alone_is_enough(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        host = made.host(1)
        membership = member(host, subnet="10.88.1.0/24")
        overlay = await membership.overlay()
        place = host.container("c")
        await overlay.attach("c", str(place))
        assert ping(place, "10.88.1.1")
        await membership.close()


async def test_a_node_that_cannot_join_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with lab(tmp_path) as made:
        membership = member(made.host(1), subnet="10.88.1.0/24", endpoint="192.0.2.77")
        with pytest.raises(NetworkError, match=r"no link of this node has the overlay endpoint 192.0.2.77"):
            await membership.overlay()
        await membership.close()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize("changes", [{"subnet": "10.88.1.0/24", "nomad": {}}, {}])
def test_shares_are_nomads_or_the_blocks(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="nomad"):
        parse(OverlayBlock, {"network": "10.88.0.0/16", "endpoint": "192.0.2.1"} | changes, what="overlay")


@pytest.mark.needs("nomad")
async def test_nodes_find_each_other_through_nomad(tmp_path: Path, nomad_address: str) -> None:
    await empty(nomad_address, PATH)
    async with lab(tmp_path) as made:
        hosts = made.host(1), made.host(2)
        nomad = {"address": nomad_address}
        memberships = [member(host, nomad=nomad) for host in hosts]
        overlays = [await membership.overlay() for membership in memberships]
        places = [host.container("c") for host in hosts]
        attached = [await overlay.attach("c", str(place)) for overlay, place in zip(overlays, places, strict=True)]
        await _told(hosts[0], str(overlays[1].plan.subnets.v4))
        await _told(hosts[1], str(overlays[0].plan.subnets.v4))
        assert ping(places[0], attached[1].addresses[0], wait_s=10)
        async with flowing(places[0], attached[1].addresses):  # the next process knows the peers before Nomad tells them
            await memberships[0].close()
            memberships[0] = member(hosts[0], nomad=nomad)
            overlay = await memberships[0].overlay()
        assert overlay.plan.subnets == overlays[0].plan.subnets
        assert await overlay.describe("c") == attached[0]
        for membership in memberships:
            await membership.close()


@pytest.mark.needs("nomad", "wireguard-go")
async def test_a_node_may_change_to_wireguard(tmp_path: Path, nomad_address: str) -> None:
    """The peers that it had have no keys, so it waits for Nomad to tell of them."""
    await empty(nomad_address, PATH)
    async with lab(tmp_path) as made:
        host, other = made.host(1), made.host(2)
        peer = {"name": "other", "endpoint": other.endpoint, "subnet": "10.88.2.0/24"}
        known = []
        for changes in ({"subnet": "10.88.1.0/24", "peer": [peer]}, {"nomad": {"address": nomad_address}, "transport": "wireguard"}):
            membership = member(host, **changes)
            known.append([peer.name for peer in (await membership.overlay()).plan.peers])
            await membership.close()
        assert known == [["other"], []]


@pytest.mark.needs("nomad")
async def test_a_node_that_lost_its_share_leaves_the_overlay(tmp_path: Path, nomad_address: str) -> None:
    await empty(nomad_address, PATH)
    async with lab(tmp_path) as made:
        host = made.host(1)
        membership = member(host, nomad={"address": nomad_address})
        await membership.overlay()
        assert host.plan().bridge in run(["ip", "link"], namespace=host.namespace)
        async with Nomad(Access(address=nomad_address)) as nomad:
            await nomad.post(f"/v1/var/{PATH}", {"Path": PATH, "Items": {"other": _OTHER}})
        await membership._task
        with pytest.raises(NetworkError, match="no longer has the share"):
            await membership.overlay()
        assert host.plan().bridge not in run(["ip", "link"], namespace=host.namespace)
        await membership.close()


_OTHER = '{"subnet":"10.88.0.0/24","subnet6":null,"name":"x","endpoint":"192.0.2.9","port":4789,"public_key":"","seen_s":1}'


async def _told(host: Host, subnet: str) -> None:
    """Returns once the kernel has a route to the subnet: it tells of each as it comes."""
    argv = ["nsenter", f"--net={host.namespace}", "ip", "monitor", "route"]
    monitor = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert monitor.stdout
    while subnet not in await asyncio.to_thread(run, ["ip", "route"], namespace=host.namespace):
        await monitor.stdout.readline()
    monitor.terminate()
    await monitor.communicate()
