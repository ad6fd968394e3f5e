"""A guest that brings up its own WireGuard interface from what was pushed to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from tests.host.oci_lab import OneImage, shell
from tests.host.overlay_lab import Lab, lab, ping, run
from tests.host.vm_lab import MACHINES, backend, handle, machines
from zlayer_driver.backends.vm import VmBackend
from zlayer_driver.config import Transport
from zlayer_driver.errors import InvalidSpec, Unsupported
from zlayer_driver.model import Handle, Network
from zlayer_driver.overlay.guest import GuestManaged
from zlayer_driver.readings import GuestOverlay

pytestmark = pytest.mark.needs("root", "ip", "nsenter", "busybox", "wireguard-go")


@pytest.fixture
async def made(root: Path) -> AsyncIterator[Lab]:
    async with lab(root, Transport.WIREGUARD) as made:
        yield made


async def reaches(vms: VmBackend, guest: Handle, address: object) -> bool:
    answer = await vms.exec(guest, ["busybox", "ping", "-c", "1", "-W", "10", str(address)], timeout_s=60)
    return answer.exit.code == 0


@pytest.mark.needs(*MACHINES, "tc")
@pytest.mark.timeout(180)
async def test_a_guest_and_containers_on_its_and_another_node_reach_each_other(root: Path, images: OneImage, made: Lab) -> None:
    """The guest is a real one. What it sends comes out of a namespace on the switch."""
    one, two, outside = made.host(1), made.host(2), made.host(9)
    vms = backend(root, images, machines(root))
    guest = handle("vm", await vms.start(shell("vm", "sleep 1000", network=Network(mode="path", netns_path=str(outside.namespace)))))
    near, far = one.overlay(peers=(two.peer(),)), two.overlay(peers=(one.peer(),))
    beside, away = one.container("c"), two.container("c")
    neighbour, other = await near.attach("c", str(beside)), await far.attach("c", str(away))
    guests = GuestManaged(near)
    attached = await guests.attach("vm", partial(vms.push_overlay, guest))
    assert [address.version for address in attached.addresses] == [4, 6]
    for address in (*neighbour.addresses, *other.addresses):
        assert await reaches(vms, guest, address)
    for place in (beside, away):
        assert all(ping(place, address, wait_s=10) for address in attached.addresses)
    await near.set_peers([two.peer()])
    assert all(ping(away, address, wait_s=10) for address in attached.addresses)
    assert await guests.attach("vm", partial(vms.push_overlay, guest)) == attached
    assert await reaches(vms, guest, other.addresses[1])
    await guests.detach("vm")
    await guests.detach("vm")
    assert not any(ping(away, address, wait_s=1) for address in attached.addresses)
    assert await guests.describe("vm") is None
    await vms.destroy(guest)


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


async def test_a_guest_is_answered_for_after_the_last_container_left(made: Lab) -> None:
    host = made.host(1)
    overlay, place = host.overlay(), host.container("c")

    async def take(_: GuestOverlay) -> None: ...

    attached = await GuestManaged(overlay).attach("vm", take)
    await overlay.attach("c", str(place))
    await overlay.detach("c")
    await overlay.call(lambda core: core.netns.reap())
    bridge = overlay.plan.bridge
    while " DOWN " not in await asyncio.to_thread(run, ["ip", "-br", "link", "show", bridge], namespace=host.namespace):
        pass
    run(["ip", "link", "set", bridge, "up"], namespace=host.namespace)  # comes after all that the kernel does about the carrier
    assert f"{attached.addresses[1]} " in run(["ip", "-6", "neigh", "show", "proxy"], namespace=host.namespace)
    await GuestManaged(overlay).detach("vm")
    assert run(["ip", "-6", "neigh", "show", "proxy"], namespace=host.namespace) == ""


async def test_guests_need_wireguard(tmp_path: Path) -> None:
    async with lab(tmp_path) as plain:
        with pytest.raises(Unsupported, match="WireGuard"):
            GuestManaged(plain.host(1).overlay())
