"""Networks of allocations: made, asked for again, ended; and a real container in one that reaches another node's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.host.oci_lab import OneImage, backend, handle, shell
from tests.host.overlay_lab import lab, ping, run
from zlayer_driver.errors import InvalidSpec, NetworkError
from zlayer_driver.host import netns
from zlayer_driver.model import Network
from zlayer_driver.overlay.networks import Networks
from zlayer_driver.overlay.plan import INTERFACE, Subnets

pytestmark = pytest.mark.needs("root", "ip", "nsenter", "busybox")


async def test_a_network_is_made_once_and_survives_the_plugin(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        host = made.host(1)
        first = await Networks(host.overlay()).create("alloc-1", "web")
        assert first.created
        assert (first.hostname, first.address) == ("web", "10.88.1.2")
        await host.close()
        networks = Networks(host.overlay())
        again = await networks.create("alloc-1", "web")
        assert (again.path, again.address, again.created) == (first.path, first.address, False)
        assert ping(Path(again.path), "10.88.1.1")
        await networks.destroy("alloc-1")
        await networks.destroy("alloc-1")
        assert not Path(again.path).exists()


async def test_a_network_that_is_asked_for_again_gets_an_address_of_the_nodes_new_share(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        host = made.host(1)
        first = await Networks(host.overlay()).create("alloc-1", "")
        await host.close()
        networks = Networks(host.overlay(subnets=Subnets.of("10.88.7.0/24", "fd88:0:0:7::/64")))
        again = await networks.create("alloc-1", "")
        assert (again.path, again.address, again.created) == (first.path, "10.88.7.2", False)
        assert ping(Path(again.path), "10.88.7.1")
        assert first.address not in run(["ip", "addr"], namespace=Path(again.path))
        await networks.destroy("alloc-1")


async def test_a_network_that_cannot_be_attached_leaves_no_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lab(tmp_path) as made:
        overlay = made.host(1).overlay()
        networks = Networks(overlay)
        await overlay.open()
        core = overlay._core
        assert core

        def refuse(*_: object) -> None:
            raise OSError(1, "Operation not permitted", "make the pair")

        monkeypatch.setattr(core.netns, "_make_pair", refuse)
        with pytest.raises(NetworkError, match="cannot make the pair"):
            await networks.create("alloc-1", "")
        assert not networks.path("alloc-1").exists()
        assert await overlay.describe("alloc-1") is None


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\0b", "-x", "x" * 200])
async def test_hostile_allocation_ids_are_refused(tmp_path: Path, name: str) -> None:
    async with lab(tmp_path) as made:
        with pytest.raises(InvalidSpec, match="no allocation id"):
            await Networks(made.host(1).overlay()).create(name, "")


@pytest.mark.needs("runc", "conmon")
async def test_containers_on_three_nodes_reach_each_other(root: Path, images: OneImage) -> None:
    async with lab(root / "lab") as made:
        hosts = [made.host(number) for number in (1, 2, 3)]
        nodes = [Networks(host.overlay(peers=tuple(other.peer() for other in hosts if other is not host))) for host in hosts]
        specs = [await node.create(f"alloc-{number}", "web") for number, node in enumerate(nodes)]
        addresses = [(await node.find(f"alloc-{number}")).addresses for number, node in enumerate(nodes)]
        oci, tasks = backend(root, images), []
        for number, spec in enumerate(specs):
            others = [str(address) for other, pair in enumerate(addresses) if other != number for address in pair]
            script = " && ".join(f"busybox ping -c 1 -W 5 {address}" for address in others)
            network = Network(mode="path", netns_path=spec.path)
            tasks.append(handle(f"web-{number}", await oci.start(shell(f"web-{number}", script, network=network))))
        assert [(await oci.wait(task)).code for task in tasks] == [0, 0, 0]
        for number, (task, node) in enumerate(zip(tasks, nodes, strict=True)):
            assert INTERFACE in run(["ip", "link"], namespace=Path(specs[number].path))
            await oci.destroy(task)
            await node.destroy(f"alloc-{number}")
        assert not any(netns.is_alive(spec.path) for spec in specs)


async def test_thirty_networks_at_once(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        networks = Networks(made.host(1).overlay())
        specs = await asyncio.gather(*(networks.create(f"alloc-{number}", "") for number in range(30)))
        assert len({spec.address for spec in specs}) == 30
        await asyncio.gather(*(networks.destroy(f"alloc-{number}") for number in range(30)))
