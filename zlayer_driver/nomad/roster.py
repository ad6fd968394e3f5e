"""Which node has which share of the overlay: one Nomad variable, changed only by check-and-set, so that no share is given twice.

An item of the variable is a node: its id, and as JSON its share, endpoint and key. A node takes its share once and keeps it; it renews its item, and
one that was not renewed for long may be taken over. A node that finds its item gone, or another's share in it, has lost it and stops using it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TypeVar

from zlayer_driver.errors import NetworkError, NomadError
from zlayer_driver.nomad.client import Nomad
from zlayer_driver.overlay.plan import Peer, Subnets

PATH = "zlayer/overlay"
_CONFLICT, _ABSENT = 409, 404
_ATTEMPTS = 32
_PREFIX_LENGTHS = {4: 24, 6: 64}
Result = TypeVar("Result")
_Network = TypeVar("_Network", IPv4Network, IPv6Network)


@dataclass(frozen=True, slots=True)
class Member:
    """A node and when it last said that it is there, in Unix seconds."""

    node_id: str
    peer: Peer
    seen_s: int

    def dumps(self) -> str:
        peer = self.peer
        shares = {"subnet": str(peer.subnets.v4), "subnet6": str(peer.subnets.v6) if peer.subnets.v6 else None}
        rest = {"name": peer.name, "endpoint": str(peer.endpoint), "port": peer.port, "public_key": peer.public_key, "seen_s": self.seen_s}
        return json.dumps({**shares, **rest}, separators=(",", ":"))

    @classmethod
    def loads(cls, node_id: str, text: str) -> Member:
        """`NetworkError` for what `dumps` never wrote."""
        try:
            doc = json.loads(text)
            subnets = Subnets.of(doc["subnet"], doc["subnet6"])
            peer = Peer(str(doc["name"]), ip_address(doc["endpoint"]), int(doc["port"]), subnets, str(doc["public_key"]))
            return cls(node_id, peer, int(doc["seen_s"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise NetworkError(f"the Nomad variable {PATH} has no overlay node under {node_id!r}: {error!r}") from error


class Roster:
    """``network`` is shared out in /24 and /64 shares. An item that is older than ``expiry_s`` may be taken over."""

    def __init__(self, nomad: Nomad, network: Subnets, *, expiry_s: float = 24 * 3600.0, clock: Callable[[], float] = time.time) -> None:
        self._nomad = nomad
        self._network = network
        self._expiry_s = expiry_s
        self._clock = clock

    async def claim(self, node_id: str, make: Callable[[Subnets], Peer], *, before: Subnets | None = None) -> Peer:
        """This node, as ``make`` gives it for a share: the one it has, else the one it had ``before``, if nobody took it, else a free one."""

        def change(members: dict[str, Member]) -> Peer:
            for other in [member for member in members.values() if self._is_stale(member) and member.node_id != node_id]:
                del members[other.node_id]
            held = members.get(node_id)
            wanted = held.peer.subnets if held else before
            taken = [member.peer.subnets for member in members.values() if member.node_id != node_id]
            if wanted is None or any(_overlap(wanted, other) for other in taken):
                wanted = self._free(taken)
            members[node_id] = Member(node_id, made := make(wanted), int(self._clock()))
            return made

        return await self._change(change)

    async def renew(self, node_id: str, me: Peer) -> None:
        """Says that the node is there; `NetworkError` if it lost its share."""

        def change(members: dict[str, Member]) -> None:
            _require(members.values(), node_id, me)
            members[node_id] = replace(members[node_id], seen_s=int(self._clock()))

        await self._change(change)

    async def leave(self, node_id: str) -> None:
        """Gives the share back. Idempotent."""

        def change(members: dict[str, Member]) -> None:
            members.pop(node_id, None)

        await self._change(change)

    async def follow(self, node_id: str, me: Peer, apply: Callable[[Sequence[Peer]], Awaitable[None]]) -> None:
        """Gives ``apply`` the other nodes, now and whenever they change, until cancelled; `NetworkError` once this node lost its share."""
        known: list[Peer] | None = None
        index = 0
        while True:
            _, members, index = await self._read()
            _require(members.values(), node_id, me)
            others = [member.peer for member in members.values() if member.node_id != node_id]
            if others != known:
                await apply(others)
                known = others
            await self._nomad.changed(f"/v1/var/{PATH}", index)

    def _is_stale(self, member: Member) -> bool:
        return member.seen_s + self._expiry_s < self._clock()

    def _free(self, taken: Sequence[Subnets]) -> Subnets:
        v4 = _first_free(self._network.v4, [subnets.v4 for subnets in taken])
        v6 = _first_free(self._network.v6, [subnets.v6 for subnets in taken if subnets.v6]) if self._network.v6 else None
        return Subnets(v4, v6)

    async def _read(self) -> tuple[int, dict[str, Member], int]:
        """The variable's version (0: there is none), its nodes, and the index to wait beyond."""
        try:
            reply = await self._nomad.get(f"/v1/var/{PATH}")
        except NomadError as error:
            if error.status != _ABSENT:
                raise
            return 0, {}, 0
        items = reply.value["Items"]
        return (
            int(reply.value["ModifyIndex"]),
            {node_id: Member.loads(node_id, text) for node_id, text in sorted(items.items())},
            reply.index,
        )

    async def _change(self, change: Callable[[dict[str, Member]], Result]) -> Result:
        """What ``change`` gives, once its result was written over exactly what it was given."""
        for _ in range(_ATTEMPTS):
            version, members, _ = await self._read()
            before = dict(members)
            result = change(members)
            if members == before:
                return result
            body = {"Path": PATH, "Items": {node_id: member.dumps() for node_id, member in members.items()}}
            try:
                await self._nomad.post(f"/v1/var/{PATH}", body, cas=str(version))
            except NomadError as error:
                if error.status != _CONFLICT:
                    raise
            else:
                return result
        raise NetworkError(f"the Nomad variable {PATH} changes faster than this node can write it", recoverable=True)


async def keep_renewing(roster: Roster, node_id: str, me: Peer, *, every_s: float, sleep: Callable[[float], Awaitable[None]]) -> None:
    """Renews until cancelled; `NetworkError` once the share is lost. Nomad being away for a while changes nothing."""
    while True:
        await sleep(every_s)
        try:
            await roster.renew(node_id, me)
        except NomadError as error:
            if not error.recoverable:
                raise


async def serve(
    roster: Roster, node_id: str, me: Peer, apply: Callable[[Sequence[Peer]], Awaitable[None]], *, renew_every_s: float = 3600.0
) -> None:
    """Both `Roster.follow` and `keep_renewing`; the first that fails ends the other."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(roster.follow(node_id, me, apply))
            group.create_task(keep_renewing(roster, node_id, me, every_s=renew_every_s, sleep=asyncio.sleep))
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed


def _require(members: Iterable[Member], node_id: str, me: Peer) -> None:
    if not any(member.node_id == node_id and member.peer.subnets == me.subnets for member in members):
        raise NetworkError(
            f"this node no longer has the share {me.subnets.v4} of the overlay", hint="restart the agent: the node takes another"
        )


def _overlap(one: Subnets, other: Subnets) -> bool:
    return any(mine.overlaps(theirs) for mine, theirs in zip(one.each(), other.each(), strict=False))


def _first_free(network: _Network, taken: Sequence[_Network]) -> _Network:
    length = max(network.prefixlen, _PREFIX_LENGTHS[network.version])
    held = {int(subnet.network_address) for subnet in taken}
    for candidate in network.subnets(new_prefix=length):
        if int(candidate.network_address) not in held and not any(candidate.overlaps(subnet) for subnet in taken):
            return candidate
    raise NetworkError(f"every share of the overlay {network} is taken", hint="widen the network, or remove nodes that are gone")
