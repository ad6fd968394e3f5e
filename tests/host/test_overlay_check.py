"""``zlayer-driver overlay``: what it shows, and that it names the hop that fails, whichever it is."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.host.overlay_lab import Host, Lab, lab, run
from zlayer_driver.config import Transport
from zlayer_driver.errors import NetworkError, NotFound
from zlayer_driver.host.wireguard import PeerChange, Userspace
from zlayer_driver.overlay.inspection import Hop, Inspector, look

pytestmark = pytest.mark.needs("root", "ip", "bridge", "nsenter", "busybox")

Nodes = tuple[Host, Host]


async def pair(made: Lab) -> Nodes:
    one, two = made.host(1), made.host(2)
    for host, other in ((one, two), (two, one)):
        await host.overlay(peers=(other.peer(),)).open()
    return one, two


async def check(host: Host) -> list[Hop]:
    return await look(lambda seen: list(seen.check()), host.state_dir, netns_path=str(host.namespace))


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[tuple[Lab, Nodes]]:
    async with lab(tmp_path) as made:
        yield made, await pair(made)


async def test_every_hop_of_a_sound_overlay_is_tried(nodes: tuple[Lab, Nodes]) -> None:
    one, _ = nodes[1]
    hops = await check(one)
    assert all(hop.ok for hop in hops), hops
    assert [hop.hop for hop in hops if hop.peer == "n2"] == [
        "route",
        "neighbour",
        "forwarding entry",
        "underlay",
        "overlay IPv4",
        "overlay IPv6",
    ]


@pytest.mark.parametrize(
    ("damage", "hop"),
    [
        ("ip link set {bridge} down", "bridge"),
        ("ip link del {device}", "device"),
        ("echo 0 > /proc/sys/net/ipv4/conf/{bridge}/forwarding", "forwarding"),
        ("ip addr del 10.88.1.1/24 dev {bridge}", "address"),
        ("ip route del 10.88.2.0/24", "route"),
        ("ip neigh del 10.88.2.1 dev {device}", "neighbour"),
        ("bridge fdb del {mac} dev {device} dst 10.199.0.2", "forwarding entry"),
        ("ip addr del 10.199.0.1/24 dev un0", "underlay"),
    ],
)
async def test_the_hop_that_fails_is_named(nodes: tuple[Lab, Nodes], damage: str, hop: str) -> None:
    one, two = nodes[1]
    plan = one.plan()
    text = damage.format(bridge=plan.bridge, device=plan.device, mac=two.peer().mac)
    run(["sh", "-c", text], namespace=one.namespace)
    failed = [found.hop for found in await check(one) if not found.ok]
    assert failed == [hop]


async def test_a_peer_that_does_not_answer_in_the_overlay_is_told_from_one_that_is_gone(nodes: tuple[Lab, Nodes]) -> None:
    made, (one, two) = nodes
    run(["ip", "link", "set", two.plan().device, "down"], namespace=two.namespace)
    assert [hop.hop for hop in await check(one) if not hop.ok] == ["overlay IPv4"]
    made.unplug(two)
    assert [hop.hop for hop in await check(one) if not hop.ok] == ["underlay"]


@pytest.mark.needs("wireguard-go")
async def test_a_wireguard_peer_without_a_handshake_is_named(tmp_path: Path) -> None:
    async with lab(tmp_path, Transport.WIREGUARD) as made:
        one, two = await pair(made)
        shown = await look(Inspector.status, one.state_dir, netns_path=str(one.namespace))
        assert shown["public_key"] == one.public_key
        await look(lambda seen: list(seen.check()), two.state_dir, netns_path=str(two.namespace))
        Userspace(two.plan().device).remove()
        Userspace(one.plan().device).configure([PeerChange(two.public_key, remove=True)])
        assert [hop.hop for hop in await check(one) if not hop.ok] == ["peer"]


async def test_the_command_line_shows_it(nodes: tuple[Lab, Nodes]) -> None:
    one, _ = nodes[1]
    place = one.container("c")
    await one.overlays[0].attach("alloc-1", str(place))

    def ask(*words: str) -> tuple[int, str]:
        argv = ["nsenter", f"--net={one.namespace}", sys.executable, "-c", "from zlayer_driver.cli.main import entry; entry()"]
        done = subprocess.run(
            [*argv, "--state-dir", str(one.state_dir.parent), "overlay", *words], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    code, text = await asyncio.to_thread(ask, "status", "--json")
    shown = json.loads(text)
    assert (code, shown["node"], shown["attached"]) == (0, "n1", {"alloc-1": "10.88.1.2"})
    code, text = await asyncio.to_thread(ask, "peers", "--json")
    assert [row["state"] for row in json.loads(text)] == ["ok"]
    code, text = await asyncio.to_thread(ask, "check")
    assert code == 0, text
    run(["ip", "route", "del", "10.88.2.0/24"], namespace=one.namespace)
    code, text = await asyncio.to_thread(ask, "check")
    assert code == 1
    assert "none to 10.88.2.0/24" in text


async def test_an_overlay_that_never_ran_is_said_to_be_absent(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no plugin with an overlay has run"):
        await look(Inspector.status, tmp_path)


@pytest.mark.parametrize("damage", [b"", b"\xff", b"[]", b"{}"])
async def test_a_damaged_plan_is_named(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(damage)
    with pytest.raises(NotFound, match=r"plan.json is damaged"):
        await look(Inspector.status, tmp_path)


async def test_a_damaged_table_of_leases_is_named(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        host = made.host(1)
        await host.overlay().open()
        await host.close()
        (host.state_dir / "leases.db").write_bytes(b"no table" * 100)
        with pytest.raises(NetworkError, match=r"leases.db cannot be used: file is not a database.*delete it"):
            await look(Inspector.status, host.state_dir, netns_path=str(host.namespace))
        with pytest.raises(NetworkError, match=r"leases.db cannot be used: file is not a database.*delete it"):
            await host.overlay().open()
