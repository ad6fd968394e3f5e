"""The overlay of one node: its fabric, its leases and the attach kinds, behind one thread that lives in the node's network namespace.

Nothing of the machine is touched before `Overlay.open`. Every method raises `NetworkError`.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from zlayer_driver.config import Transport
from zlayer_driver.errors import NetworkError
from zlayer_driver.host import netns
from zlayer_driver.host.netlink import Socket
from zlayer_driver.overlay import leases
from zlayer_driver.overlay.fabric import Fabric
from zlayer_driver.overlay.host_netns import Attachment, HostNetns
from zlayer_driver.overlay.leases import Leases
from zlayer_driver.overlay.nat import Nat
from zlayer_driver.overlay.plan import PLAN_FILE, Peer, Plan
from zlayer_driver.overlay.tunnel import WireGuard
from zlayer_driver.readings import PortMapping

P = ParamSpec("P")
T = TypeVar("T")

KEY_FILE = "wireguard.key"
STATE = "overlay"  # the overlay's directory below the driver's
_log = logging.getLogger(__name__)
_REAP_AFTER_S = 0.5  # deletions gather for this long: they cost the kernel the same time together as one alone


class Core:
    """What the thread owns. Made, used and closed in it."""

    def __init__(self, plan: Plan, state_dir: Path) -> None:
        with ExitStack() as stack:
            self.plan = plan
            self._plan_path = state_dir / PLAN_FILE
            self.leases = stack.enter_context(closing(Leases(state_dir / leases.FILE, plan.subnets.numbers())))
            sock = stack.enter_context(Socket())
            tunnel = WireGuard(plan, state_dir / KEY_FILE) if plan.transport is Transport.WIREGUARD else None
            self.fabric = Fabric(plan, sock, tunnel)
            self.fabric.build()
            self.public_key = tunnel.public_key if tunnel else ""
            self.nat = Nat(plan)
            self.netns = HostNetns(plan, self.fabric, self.leases, self.nat, sock)
            self.netns.sweep()
            self.set_peers(plan.peers)
            self.close = stack.pop_all().close

    def set_peers(self, peers: Sequence[Peer]) -> None:
        """Makes these the peers, and tells who looks from outside. One that does not fit must not keep the node from the others."""
        faults = {peer: self.plan.fault_of(peer) for peer in peers}
        for peer, fault in faults.items():
            if fault:
                _log.warning("the overlay is without peer %s: %s", peer.name, fault)
        fitting = tuple(peer for peer, fault in faults.items() if not fault)
        self.fabric.set_peers(fitting)
        draft = self._plan_path.with_suffix(".new")
        draft.write_text(replace(self.plan, peers=fitting).dumps())
        draft.replace(self._plan_path)


class Overlay:
    """``netns_path`` is the network namespace of the node, ``state_dir`` where leases and keys lie."""

    def __init__(self, plan: Plan, state_dir: Path, *, netns_path: str = "/proc/self/ns/net") -> None:
        self.plan = plan
        self.state_dir = state_dir
        self._netns_path = netns_path
        self._worker: netns.Worker | None = None
        self._core: Core | None = None
        self._opening = asyncio.Lock()
        self._reaping: asyncio.TimerHandle | None = None
        self._reaps: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Makes the node's part of the overlay, or takes over an earlier process's. Repeated calls change nothing."""
        async with self._opening:
            if self._core is None:
                with self._told():
                    worker = self._worker = self._worker or netns.Worker(self._netns_path)
                    self._core = await worker.run(Core, self.plan, self.state_dir)

    async def call(self, work: Callable[Concatenate[Core, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``work`` gives, in the overlay's thread; opens the overlay first."""
        if self._worker is None or self._core is None:
            await self.open()
            return await self.call(work, *args, **kwargs)
        with self._told():
            return await self._worker.run(work, self._core, *args, **kwargs)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the system refused, in the house's words: the file name of an error is a file's, or says what was to be done."""
        try:
            yield
        except OSError as error:
            what = str(error.filename or "go on")
            what = f"use {what}" if what.startswith("/") else what
            raise NetworkError(f"the overlay cannot {what}: {error.strerror or error}") from error
        except sqlite3.Error as error:
            raise leases.unusable(self.state_dir / leases.FILE, error) from error

    async def set_peers(self, peers: Sequence[Peer]) -> None:
        """Makes these the node's peers; packets to those that stay are not disturbed."""
        await self.call(lambda core: core.set_peers(peers))

    async def leave(self) -> None:
        """Takes the node out of the overlay, as when its share is another's now: its links go, and no packet passes."""
        await self.call(_leave)

    async def attach(self, owner: str, place: str) -> Attachment:
        """Attaches the network namespace at ``place``; for an owner that is attached, repairs what is missing."""
        return await self.call(lambda core: core.netns.attach(owner, place))

    async def detach(self, owner: str) -> None:
        """Takes the owner out of the overlay at once. Its link and lease go shortly after; unknown owners are fine."""
        if await self.call(lambda core: core.netns.detach(owner)):
            self.reap_soon()

    async def describe(self, owner: str) -> Attachment | None:
        return await self.call(lambda core: core.netns.describe(owner))

    async def publish(self, owner: str, ports: Sequence[PortMapping]) -> None:
        """Makes these the ports of the node that lead to the owner's container, where the plan says so; they end with its attachment."""
        await self.call(_publish, owner, ports)

    async def register(self, owner: str, address: str) -> Attachment:
        """Attach kind ``host_ip``: the address, of either family, belongs to an endpoint that exists already; it is held for its owner."""
        number = self.plan.subnets.number(ip_address(address))
        lease = await self.call(lambda core: core.leases.hold(owner, number))
        return Attachment(owner, self.plan.subnets.at(lease.number))

    async def lease(self, owner: str) -> Attachment:
        """An address that somebody else brings up: a guest, or a proxy of this node."""
        lease = await self.call(lambda core: core.leases.take(owner, ""))
        return Attachment(owner, self.plan.subnets.at(lease.number))

    def reap_soon(self) -> None:
        """Deletes what is out of traffic, together with what else leaves until then."""
        if self._reaping is None:
            self._reaping = asyncio.get_running_loop().call_later(_REAP_AFTER_S, self._reap)

    def _reap(self) -> None:
        self._reaping = None
        task = asyncio.ensure_future(self.call(lambda core: core.netns.reap()))
        self._reaps.add(task)
        task.add_done_callback(self._reaped)

    def _reaped(self, task: asyncio.Task[None]) -> None:
        self._reaps.discard(task)
        if not task.cancelled() and (failure := task.exception()):
            _log.warning("what left the overlay could not be removed, and is tried again at the next start: %s", failure)

    async def close(self) -> None:
        """Lets go of thread, socket and table; what is attached stays, and the next process reaps what is left to reap."""
        if self._reaping:
            self._reaping.cancel()
            self._reap()
        if self._reaps:
            await asyncio.wait(self._reaps)
        async with self._opening:
            worker, core = self._worker, self._core
            self._worker = self._core = None  # who calls from now on opens the overlay anew
            if worker and core:
                await worker.run(core.close)
            if worker:
                await asyncio.to_thread(worker.close)


def _publish(core: Core, owner: str, ports: Sequence[PortMapping]) -> None:
    if not core.netns.publish(owner, ports):
        raise NetworkError(f"no port can lead to {owner!r}: it has no namespace here")


def _leave(core: Core) -> None:
    core.nat.remove()
    core.fabric.remove()
