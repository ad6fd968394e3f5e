"""The node's WireGuard device: its key, its port and its peers, changed one by one so that the others' packets flow on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from pathlib import Path

from zlayer_driver.host import wireguard
from zlayer_driver.overlay import keys
from zlayer_driver.overlay.plan import Address, Guest, Peer, Plan

_KEEPALIVE_S = 25


class WireGuard:
    """Fulfils `fabric.Tunnel`; all of it runs in the overlay's thread, whose namespace the device gets."""

    def __init__(self, plan: Plan, key_path: Path) -> None:
        self._name = plan.device
        self._port = plan.port
        self._own = plan.subnets.v4
        self._key_path = key_path
        self.public_key = ""

    def ensure(self) -> None:
        pair = keys.load(self._key_path)
        self.public_key = pair.public
        wireguard.start(self._name)
        found = wireguard.state(self._name)
        if not found.has_key or found.listen_port != self._port:
            wireguard.configure(self._name, [f"private_key={keys.raw(pair.private).hex()}", f"listen_port={self._port}"])

    def set_peers(self, peers: Sequence[Peer]) -> None:
        """Guests are told from peers by their subnets: a guest's is one address of this node's own."""
        present = wireguard.state(self._name).peers
        wanted = {keys.raw(peer.public_key).hex(): peer for peer in peers}
        lines = [line for key, peer in wanted.items() for line in _peer_changes(key, peer, present.get(key))]
        for key, found in present.items():
            if key not in wanted and not self._is_guest(found):
                lines += [f"public_key={key}", "remove=true"]
        if lines:
            wireguard.configure(self._name, lines)

    def _is_guest(self, found: wireguard.PeerState) -> bool:
        return any(ip_network(allowed).network_address in self._own for allowed in found.allowed)

    def set_guest(self, guest: Guest) -> None:
        """Lets a guest in, from wherever it calls; whoever had its address is out."""
        self.drop_guest(guest.address)
        wireguard.configure(self._name, [f"public_key={keys.raw(guest.public_key).hex()}", f"allowed_ip={guest.address}/32"])

    def drop_guest(self, address: Address) -> None:
        for key, found in wireguard.state(self._name).peers.items():
            if f"{address}/32" in found.allowed:
                wireguard.configure(self._name, [f"public_key={key}", "remove=true"])

    def stop(self) -> None:
        wireguard.stop(self._name)


def _peer_changes(key: str, peer: Peer, present: wireguard.PeerState | None) -> Iterator[str]:
    host = f"[{peer.endpoint}]" if peer.endpoint.version == 6 else str(peer.endpoint)
    endpoint, allowed = f"{host}:{peer.port}", [str(subnet) for subnet in peer.subnets.each()]
    if present and present.endpoint == endpoint and present.allowed == frozenset(allowed):
        return
    yield f"public_key={key}"
    yield f"endpoint={endpoint}"
    yield f"persistent_keepalive_interval={_KEEPALIVE_S}"
    yield "replace_allowed_ips=true"
    yield from (f"allowed_ip={subnet}" for subnet in allowed)
