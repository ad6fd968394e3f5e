"""Attaching namespaces to one node's overlay: whole or not at all, again, after crashes, and five hundred times."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.host.overlay_lab import Host, lab, ping, run
from zlayer_driver.errors import NetworkError
from zlayer_driver.host import netns
from zlayer_driver.overlay.plan import INTERFACE

pytestmark = pytest.mark.needs("root", "ip", "nsenter", "busybox")


@pytest.fixture
async def host(tmp_path: Path, no_fd_leak: object) -> AsyncIterator[Host]:
    async with lab(tmp_path) as made:
        yield made.host(1)


async def test_an_attached_namespace_reaches_its_node_and_its_neighbours(host: Host) -> None:
    overlay = host.overlay()
    one, two = host.container("one"), host.container("two")
    first, second = await overlay.attach("one", str(one)), await overlay.attach("two", str(two))
    for address in (*overlay.plan.subnets.own(), *second.addresses):
        assert ping(one, address)
    shown = run(["ip", "-br", "addr"], namespace=one)
    assert f"{first.addresses[0]}/24" in shown
    assert f"{first.addresses[1]}/64" in shown
    assert "mtu 1450" in run(["ip", "link", "show", INTERFACE], namespace=one)
    assert "10.88.0.0/16 via 10.88.1.1" in run(["ip", "route"], namespace=one)
    assert "fd88::/48 via fd88:0:0:1::1" in run(["ip", "-6", "route"], namespace=one)


async def test_attach_again_changes_nothing_and_repairs_what_is_missing(host: Host) -> None:
    overlay, place = host.overlay(), host.container("c")
    first = await overlay.attach("c", str(place))
    before = run(["ip", "-br", "link", "show", INTERFACE], namespace=place)
    assert await overlay.attach("c", str(place)) == first
    assert run(["ip", "-br", "link", "show", INTERFACE], namespace=place) == before
    run(["ip", "addr", "flush", "dev", INTERFACE], namespace=place)
    run(["ip", "link", "set", INTERFACE, "down"], namespace=place)
    assert await overlay.attach("c", str(place)) == first
    assert all(ping(place, address) for address in overlay.plan.subnets.own())


async def test_detach_is_at_once_and_the_address_is_freed_with_the_link(host: Host) -> None:
    overlay, place = host.overlay(), host.container("c")
    await overlay.attach("c", str(place))
    await overlay.detach("c")
    assert not ping(place, overlay.plan.subnets.own()[0])
    assert await overlay.describe("c") is None
    await overlay.call(lambda core: core.netns.reap())
    assert host.links() == []
    assert await overlay.call(lambda core: core.leases.all()) == []
    await overlay.detach("c")
    await overlay.detach("never known")


async def test_attach_after_detach_works_before_the_reaper_came(host: Host) -> None:
    overlay, place = host.overlay(), host.container("c")
    await overlay.attach("c", str(place))
    await overlay.detach("c")
    attached = await overlay.attach("c", str(place))
    await overlay.call(lambda core: core.netns.reap())
    assert await overlay.describe("c") == attached
    assert ping(place, overlay.plan.subnets.own()[0])


async def test_an_owner_may_move_to_another_namespace(host: Host) -> None:
    overlay, old, new = host.overlay(), host.container("old"), host.container("new")
    before = await overlay.attach("c", str(old))
    after = await overlay.attach("c", str(new))
    assert after.addresses == before.addresses
    assert ping(new, overlay.plan.subnets.own()[0])
    assert INTERFACE not in run(["ip", "link"], namespace=old)


async def test_a_failed_attach_leaves_nothing(host: Host) -> None:
    overlay, place = host.overlay(), host.container("c")
    await overlay.attach("first", str(place))
    with pytest.raises(NetworkError, match=f"interface {INTERFACE} of somebody else"):
        await overlay.attach("second", str(place))
    with pytest.raises(NetworkError, match=r"cannot use .*/nowhere: No such file"):
        await overlay.attach("third", str(host.root / "nowhere"))
    with pytest.raises(NetworkError, match="Invalid argument"):
        await overlay.attach("fourth", "/dev/null")
    assert [lease.owner for lease in await overlay.call(lambda core: core.leases.all())] == ["first"]
    assert len(host.links()) == 1
    assert ping(place, overlay.plan.subnets.own()[0])


@pytest.mark.parametrize("step", ["_make_pair", "_settings"])
async def test_a_plugin_killed_in_an_attach_is_repaired_by_the_next(host: Host, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The process ends before ``step``: nothing of it runs, not even the undoing."""
    killed, place = host.overlay(), host.container("c")
    await killed.open()
    core = killed._core
    assert core is not None

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(core.netns, step, die)
        patched.setattr(core.netns, "_take_out", lambda lease: False)
        patched.setattr(core.leases, "leave", lambda owner: None)
        patched.setattr(core.netns, "reap", lambda: None)
        with pytest.raises(KeyboardInterrupt):
            await killed.attach("c", str(place))
    await killed.close()
    overlay = host.overlay()
    attached = await overlay.attach("c", str(place))
    assert ping(place, overlay.plan.subnets.own()[0])
    assert host.links() == [attached.link]


async def test_the_next_process_takes_over_and_frees_what_is_gone(host: Host) -> None:
    first, stays, gone = host.overlay(), host.container("stays"), host.container("gone")
    kept = await first.attach("stays", str(stays))
    await first.attach("gone", str(gone))
    await first.close()
    netns.remove(gone)
    run(["ip", "link", "add", f"{first.plan.prefix}ff", "type", "bridge"], namespace=host.namespace)
    second = host.overlay()
    await second.open()
    assert host.links() == [kept.link]
    assert [lease.owner for lease in await second.call(lambda core: core.leases.all())] == ["stays"]
    assert ping(stays, second.plan.subnets.own()[0])


@pytest.mark.parametrize(("suffix", "kind"), [("", "bridge"), ("", "ifb"), ("-vx", "bridge")])
async def test_links_of_somebody_elses_are_left_alone(host: Host, suffix: str, kind: str) -> None:
    name = host.plan().bridge + suffix
    run(["ip", "link", "add", name, "type", kind], namespace=host.namespace)
    before = run(["ip", "-br", "link", "show", name], namespace=host.namespace)
    with pytest.raises(NetworkError, match=f"link {name} is somebody else's: name another overlay.bridge"):
        await host.overlay().open()
    assert run(["ip", "-br", "link", "show", name], namespace=host.namespace) == before


async def test_a_call_while_the_overlay_closes_opens_it_anew(host: Host) -> None:
    overlay, place = host.overlay(), host.container("c")
    attached = await overlay.attach("c", str(place))
    _, seen = await asyncio.gather(overlay.close(), overlay.describe("c"))
    assert seen == attached


async def test_fifty_at_once(host: Host) -> None:
    overlay = host.overlay()
    places = [host.container(str(number)) for number in range(50)]
    attached = await asyncio.gather(*(overlay.attach(place.name, str(place)) for place in places))
    assert len({item.addresses for item in attached}) == 50
    assert all(ping(place, attached[0].addresses[0]) for place in places[1::10])
    await asyncio.gather(*(overlay.detach(place.name) for place in places))
    await overlay.call(lambda core: core.netns.reap())
    assert host.links() == []


async def test_five_hundred_cycles_leave_nothing(host: Host) -> None:
    overlay, place = host.overlay(), host.container("c")
    for number in range(500):
        await overlay.attach(f"c{number}", str(place))
        await overlay.detach(f"c{number}")
        await overlay.call(lambda core: core.netns.reap())
    assert host.links() == []
    assert await overlay.call(lambda core: core.leases.all()) == []


async def test_a_subnet_gives_each_address_once_and_says_when_it_is_full(host: Host) -> None:
    overlay = host.overlay(subnets=host.plan().subnets.of("10.88.1.0/29", "fd88:0:0:1::/64"))
    held = [await overlay.lease(f"c{number}") for number in range(5)]
    assert len({item.addresses for item in held}) == 5
    with pytest.raises(NetworkError, match="all 5 addresses") as caught:
        await overlay.lease("one more")
    assert caught.value.recoverable
    await overlay.detach("c3")
    assert (await overlay.lease("one more")).addresses == held[3].addresses


async def test_cancelling_an_attach_leaves_it_whole(host: Host) -> None:
    overlay, place = host.overlay(), host.container("c")
    await overlay.open()
    task = asyncio.ensure_future(overlay.attach("c", str(place)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    attached = await overlay.describe("c")
    assert (attached is None) == (INTERFACE not in run(["ip", "link"], namespace=place))


async def test_an_address_that_exists_already_is_held_for_its_owner(host: Host) -> None:
    overlay = host.overlay()
    registered = await overlay.register("endpoint", "10.88.1.77")
    assert await overlay.register("endpoint", "10.88.1.77") == registered
    assert await overlay.register("endpoint", "fd88:0:0:1::4d") == registered
    assert await overlay.describe("endpoint") == registered
    for owner, address in (("other", "10.88.1.77"), ("other", "10.88.2.77"), ("other", "10.88.1.1"), ("other", "fd88::4d")):
        with pytest.raises(NetworkError, match="cannot give address"):
            await overlay.register(owner, address)
    await overlay.detach("endpoint")
    assert (await overlay.register("other", "10.88.1.77")).addresses == registered.addresses
