"""What can be seen of a node's overlay from outside the plugin: its state, its peers, and which hop to a peer fails. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from zlayer_driver.config import Transport
from zlayer_driver.errors import ConfigError, NotFound
from zlayer_driver.host import netlink_messages as messages
from zlayer_driver.host import netns, nftables
from zlayer_driver.host.icmp import echo
from zlayer_driver.host.netlink import Socket
from zlayer_driver.overlay import keys, leases
from zlayer_driver.overlay.overlay import KEY_FILE
from zlayer_driver.overlay.plan import PLAN_FILE, Address, Peer, Plan
from zlayer_driver.overlay.tunnel import device_of

T = TypeVar("T")

_ECHO_S = 1.0
_STALE_S = 180  # a WireGuard session that is this old has ended
_OK = "ok"


@dataclass(frozen=True, slots=True)
class Hop:
    """A step on the way to a peer (or on the node itself). Once one fails, those behind it are not tried."""

    peer: str
    hop: str
    ok: bool
    detail: str


def load(state_dir: Path) -> Plan:
    """The plan of the node's last plugin; `NotFound` if there was none, or its file is damaged."""
    path = state_dir / PLAN_FILE
    try:
        return Plan.loads(path.read_bytes())
    except FileNotFoundError:
        reason, hint = f"no plugin with an overlay has run on {state_dir}", "name its state directory by --state-dir or --config"
    except ConfigError:
        reason, hint = f"{path} is damaged", "a plugin that starts writes it anew"
    raise NotFound("overlay", reason, hint=hint)


class Inspector:
    """Looks from the thread's network namespace; made and used in it."""

    def __init__(self, plan: Plan, state_dir: Path) -> None:
        self._plan = plan
        self._state_dir = state_dir
        with Socket() as sock:
            self._links = messages.links(sock)
            self._addresses = set(messages.addresses(sock))
            device = self._links.get(plan.device)
            self._routes = messages.routes(sock, device.index) if device else {}
            self._near = messages.neighbours(sock, device.index) if device else {}
            vxlan = device if plan.transport is Transport.VXLAN else None
            self._far = messages.forwardings(sock, vxlan.index) if vxlan else {}
        tunnel = device_of(device.name, device.kind) if device and plan.transport is Transport.WIREGUARD else None
        self._sessions = tunnel.state().peers if tunnel else {}

    def status(self) -> dict[str, object]:
        """The node's part, as one record."""
        plan, held, key = self._plan, leases.read(self._state_dir / leases.FILE), self._state_dir / KEY_FILE
        return {
            "node": plan.name,
            "transport": plan.transport,
            "endpoint": f"{plan.endpoint} port {plan.port}",
            "public_key": keys.load(key).public if plan.transport is Transport.WIREGUARD and key.exists() else None,
            "network": [str(subnet) for subnet in plan.network.each()],
            "subnets": [str(subnet) for subnet in plan.subnets.each()],
            "bridge": self._seen(plan.bridge),
            "device": self._seen(plan.device),
            "peers": len(plan.peers),
            "leases": f"{len(held)} of {len(plan.subnets.numbers())}",
            "attached": {lease.owner: str(plan.subnets.at(lease.number)[0]) for lease in held if not lease.leaving},
        }

    def _seen(self, name: str) -> str:
        link = self._links.get(name)
        return f"{name} {'up' if link.up else 'down'} mtu {link.mtu}" if link else f"{name} is not there"

    def peers(self) -> Iterator[dict[str, object]]:
        """A row a peer."""
        for peer in self._plan.peers:
            failed = next((hop for hop in self._configured(peer) if not hop.ok), None)
            yield {
                "peer": peer.name,
                "endpoint": str(peer.endpoint),
                "subnets": [str(subnet) for subnet in peer.subnets.each()],
                "state": f"{failed.hop}: {failed.detail}" if failed else _OK,
            }

    def check(self) -> Iterator[Hop]:
        """Every hop of the node and to each peer, up to the first that fails."""
        node = list(_until_failure(self._node()))
        yield from node
        if all(hop.ok for hop in node):
            for peer in self._plan.peers:
                yield from _until_failure(self._way_to(peer))

    def _node(self) -> Iterator[Hop]:
        name, plan = self._plan.name, self._plan
        for kind, link in (("bridge", plan.bridge), ("device", plan.device)):
            found = self._links.get(link)
            yield Hop(name, kind, bool(found and found.up), self._seen(link))
            yield self._forwards(link)
        bridge = self._links[plan.bridge]
        missing = [str(own) for own in plan.subnets.own() if (bridge.index, own) not in self._addresses]
        yield Hop(name, "address", not missing, f"not on the bridge: {', '.join(missing)}" if missing else _OK)
        if plan.translates and leases.read(self._state_dir / leases.FILE):
            there = nftables.has_table(plan.bridge)
            yield Hop(name, "translation", there, _OK if there else f"there is no nftables table {plan.bridge}")

    def _forwards(self, link: str) -> Hop:
        on = Path(f"/proc/sys/net/ipv4/conf/{link}/forwarding").read_text().strip() == "1"
        return Hop(
            self._plan.name, "forwarding", on, f"packets pass {link}" if on else f"packets do not pass {link}: its sysctl forwarding is 0"
        )

    def _configured(self, peer: Peer) -> Iterator[Hop]:
        missing = [str(subnet) for subnet in peer.subnets.each() if str(subnet) not in self._routes]
        yield Hop(peer.name, "route", not missing, f"none to {', '.join(missing)}" if missing else _OK)
        if self._plan.transport is Transport.VXLAN:
            wrong = any(self._near.get(str(own)) != peer.mac for own in peer.subnets.own())
            yield Hop(peer.name, "neighbour", not wrong, f"its gateway is not at {peer.mac}" if wrong else _OK)
            leads = self._far.get(peer.mac, "nowhere")
            yield Hop(peer.name, "forwarding entry", leads == str(peer.endpoint), f"{peer.mac} is at {leads}")
        else:
            session = self._sessions.get(peer.public_key)
            yield Hop(peer.name, "peer", session is not None, _OK if session else "its key is not known to the device")

    def _way_to(self, peer: Peer) -> Iterator[Hop]:
        yield from self._configured(peer)
        yield self._answers(peer, "underlay", peer.endpoint, None)
        if self._plan.transport is Transport.WIREGUARD:
            yield self._handshake(peer)
        for own, far in zip(self._plan.subnets.own(), peer.subnets.own(), strict=False):
            yield self._answers(peer, f"overlay IPv{far.version}", far, own)

    def _handshake(self, peer: Peer) -> Hop:
        age_s = int(time.time()) - self._sessions[peer.public_key].handshake_s
        fresh = age_s < _STALE_S
        return Hop(peer.name, "handshake", fresh, f"{age_s} s ago" if fresh else "none lately: are both keys right, and the port open?")

    def _answers(self, peer: Peer, hop: str, address: Address, source: Address | None) -> Hop:
        try:
            spent_s = echo(address, source=source, timeout_s=_ECHO_S)
        except OSError as error:
            return Hop(peer.name, hop, ok=False, detail=f"{address}: {error.strerror}")
        detail = f"{address}: no answer within {_ECHO_S:g} s" if spent_s is None else f"{address}: {1e3 * spent_s:.2f} ms"
        return Hop(peer.name, hop, spent_s is not None, detail)


def _until_failure(hops: Iterator[Hop]) -> Iterator[Hop]:
    for hop in hops:
        yield hop
        if not hop.ok:
            return


async def look(work: Callable[[Inspector], T], state_dir: Path, *, netns_path: str = "/proc/self/ns/net") -> T:
    """What ``work`` sees, in a thread of its own."""
    plan = load(state_dir)
    worker = netns.Worker(netns_path)
    try:
        return await worker.run(lambda: work(Inspector(plan, state_dir)))
    finally:
        worker.close()
