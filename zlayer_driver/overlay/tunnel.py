"""The node's WireGuard device: its key, its port and its peers, changed one by one so that the others' packets flow on."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path

from zlayer_driver.host.wireguard import Device, PeerChange, PeerState, Userspace, endpoint_text
from zlayer_driver.host.wireguard_kernel import KIND, Kernel
from zlayer_driver.overlay import keys
from zlayer_driver.overlay.plan import Address, Guest, Peer, Plan

KEEPALIVE_S = 25


def device_of(name: str, kind: str) -> Device:
    """What speaks to the device of a link of this kind."""
    return Kernel(name) if kind == KIND else Userspace(name)


def _best(name: str) -> Device:
    """The userspace device that an earlier process left, else the kernel's, else a userspace one."""
    userspace, kernel = Userspace(name), Kernel(name)
    if not userspace.runs() and kernel.ensure():
        return kernel
    userspace.ensure()
    return userspace


class WireGuard:
    """All of it runs in the overlay's thread, whose namespace the device gets."""

    def __init__(self, plan: Plan, key_path: Path) -> None:
        self._name = plan.device
        self._port = plan.port
        self._own = plan.subnets.v4
        self._key_path = key_path
        self._device: Device = Userspace(plan.device)
        self.public_key = ""

    def ensure(self) -> None:
        """Makes the device, or takes over that of an earlier process, whose key may be another. A port that is set anew is opened anew."""
        pair = keys.load(self._key_path)
        self.public_key = pair.public
        self._device = _best(self._name)
        is_open = self._device.state().listen_port == self._port
        self._device.configure(private_key=pair.private, listen_port=0 if is_open else self._port)

    def set_peers(self, peers: Sequence[Peer]) -> None:
        """Guests are told from peers by their subnets: a guest's is one address of this node's own."""
        present = self._device.state().peers
        wanted = {peer.public_key: peer for peer in peers}
        changes = [_settings(peer) for key, peer in wanted.items() if not _is_set(peer, present.get(key))]
        changes += [PeerChange(key, remove=True) for key, found in present.items() if key not in wanted and not self._is_guest(found)]
        if changes:
            self._device.configure(changes)

    def _is_guest(self, found: PeerState) -> bool:
        return any(ip_network(allowed).network_address in self._own for allowed in found.allowed)

    def set_guest(self, guest: Guest) -> None:
        """Lets a guest in, from wherever it calls; whoever had its addresses is out."""
        self.drop_guest(guest.addresses)
        self._device.configure([PeerChange(guest.public_key, tuple(str(ip_network(address)) for address in guest.addresses))])

    def drop_guest(self, addresses: Sequence[Address]) -> None:
        own = {str(ip_network(address)) for address in addresses}
        gone = [PeerChange(key, remove=True) for key, found in self._device.state().peers.items() if not own.isdisjoint(found.allowed)]
        if gone:
            self._device.configure(gone)

    def stop(self) -> None:
        self._device.remove()


def _settings(peer: Peer) -> PeerChange:
    allowed = tuple(str(subnet) for subnet in peer.subnets.each())
    return PeerChange(peer.public_key, allowed, (str(peer.endpoint), peer.port), KEEPALIVE_S)


def _is_set(peer: Peer, present: PeerState | None) -> bool:
    wanted = endpoint_text(str(peer.endpoint), peer.port), frozenset(str(subnet) for subnet in peer.subnets.each())
    return present is not None and (present.endpoint, present.allowed) == wanted
