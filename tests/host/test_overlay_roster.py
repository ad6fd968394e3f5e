"""Shares of the overlay in a real Nomad: given once, kept, lost, and followed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from ipaddress import ip_address

import pytest

from tests.host.nomad_agent import empty
from zlayer_driver.errors import NetworkError, NomadError
from zlayer_driver.nomad.client import Access, Nomad
from zlayer_driver.nomad.roster import PATH, Roster
from zlayer_driver.overlay.plan import Peer, Subnets

pytestmark = pytest.mark.needs("linux", "nomad")

NETWORK = Subnets.of("10.88.0.0/16", "fd88::/48")


@pytest.fixture
async def nomad(nomad_address: str) -> AsyncIterator[Nomad]:
    async with Nomad(Access(address=nomad_address)) as nomad:
        await empty(nomad_address, PATH)
        yield nomad


async def claim(roster: Roster, number: int, **how: Subnets) -> Peer:
    return await roster.claim(f"id-{number}", lambda share: Peer(f"n{number}", ip_address(f"192.0.2.{number}"), 4789, share), **how)


async def test_nodes_that_come_at_once_get_shares_of_their_own(nomad: Nomad) -> None:
    roster = Roster(nomad, NETWORK)
    peers = await asyncio.gather(*(claim(roster, number) for number in range(1, 9)))
    assert {str(peer.subnets.v4) for peer in peers} == {f"10.88.{number}.0/24" for number in range(8)}
    assert len({peer.subnets.v6 for peer in peers}) == 8
    assert await claim(roster, 3) == peers[2]


async def test_a_share_is_kept_and_a_former_one_preferred(nomad: Nomad) -> None:
    roster = Roster(nomad, NETWORK)
    former = Subnets.of("10.88.7.0/24", "fd88:0:0:7::/64")
    assert (await claim(roster, 1, before=former)).subnets == former
    assert (await claim(roster, 2, before=former)).subnets != former
    await roster.leave("id-1")
    await roster.leave("id-1")
    assert (await claim(roster, 3, before=former)).subnets == former


async def test_a_node_that_was_silent_for_long_loses_its_share_and_notices(nomad: Nomad) -> None:
    now = 1000.0
    roster = Roster(nomad, Subnets.of("10.88.0.0/24", None), expiry_s=60.0, clock=lambda: now)
    lost = await claim(roster, 1)
    with pytest.raises(NetworkError, match=r"every share of the overlay 10.88.0.0/24 is taken"):
        await claim(roster, 2)
    now += 50
    await roster.renew("id-1", lost)
    now += 50
    with pytest.raises(NetworkError, match="is taken"):
        await claim(roster, 2)
    now += 61
    taken = await claim(roster, 2)
    assert taken.subnets == lost.subnets
    with pytest.raises(NetworkError, match="no longer has the share"):
        await roster.renew("id-1", lost)
    with pytest.raises(NetworkError, match="no longer has the share"):
        await roster.follow("id-1", lost, _nothing)
    await roster.renew("id-2", taken)


async def test_peers_are_told_as_they_come_and_go(nomad: Nomad) -> None:
    roster = Roster(nomad, NETWORK)
    me = await claim(roster, 1)
    told: asyncio.Queue[list[str]] = asyncio.Queue()

    async def apply(peers: Sequence[Peer]) -> None:
        told.put_nowait([peer.name for peer in peers])

    following = asyncio.create_task(roster.follow("id-1", me, apply))
    assert await told.get() == []
    await claim(roster, 2)
    assert await told.get() == ["n2"]
    await claim(roster, 3)
    assert await told.get() == ["n2", "n3"]
    await roster.leave("id-2")
    assert await told.get() == ["n3"]
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following


async def test_a_variable_of_somebody_elses_is_not_touched(nomad: Nomad) -> None:
    await nomad.post(f"/v1/var/{PATH}", {"Path": PATH, "Items": {"id-1": "not ours"}})
    with pytest.raises(NetworkError, match="no overlay node under 'id-1'"):
        await claim(Roster(nomad, NETWORK), 2)


async def test_a_nomad_that_is_not_there_is_said_so() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]

    async def at_once(_: float) -> None: ...

    async with Nomad(Access(address=f"http://127.0.0.1:{port}"), sleep=at_once) as absent:
        with pytest.raises(NomadError, match="NOMAD_ADDR"):
            await claim(Roster(absent, NETWORK), 1)


async def _nothing(_: Sequence[Peer]) -> None: ...
