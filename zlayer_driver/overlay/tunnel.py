"""The node's WireGuard device: its key, its port and its peers, changed one by one so that the others' packets flow on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from zlayer_driver.host import wireguard
from zlayer_driver.overlay import keys
from zlayer_driver.overlay.plan import Peer, Plan

_KEEPALIVE_S = 25


class WireGuard:
    """Fulfils `fabric.Tunnel`; all of it runs in the overlay's thread, whose namespace the device gets."""

    def __init__(self, plan: Plan, key_path: Path) -> None:
        self._name = plan.device
        self._port = plan.port
        self._key_path = key_path

    def ensure(self) -> None:
        pair = keys.load(self._key_path)
        wireguard.start(self._name)
        found = wireguard.state(self._name)
        if not found.has_key or found.listen_port != self._port:
            wireguard.configure(self._name, [f"private_key={keys.raw(pair.private).hex()}", f"listen_port={self._port}"])

    def set_peers(self, peers: Sequence[Peer]) -> None:
        present = wireguard.state(self._name).peers
        wanted = {keys.raw(peer.public_key).hex(): peer for peer in peers}
        lines = [line for key, peer in wanted.items() for line in _changes(key, peer, present.get(key))]
        lines += [line for key in present if key not in wanted for line in (f"public_key={key}", "remove=true")]
        if lines:
            wireguard.configure(self._name, lines)

    def stop(self) -> None:
        wireguard.stop(self._name)


def _changes(key: str, peer: Peer, present: wireguard.PeerState | None) -> Iterator[str]:
    host = f"[{peer.endpoint}]" if peer.endpoint.version == 6 else str(peer.endpoint)
    endpoint, allowed = f"{host}:{peer.port}", [str(subnet) for subnet in peer.subnets.each()]
    if present and present.endpoint == endpoint and present.allowed == frozenset(allowed):
        return
    yield f"public_key={key}"
    yield f"endpoint={endpoint}"
    yield f"persistent_keepalive_interval={_KEEPALIVE_S}"
    yield "replace_allowed_ips=true"
    yield from (f"allowed_ip={subnet}" for subnet in allowed)
