"""The node's own part of the overlay: bridge, transport device, and a way to each peer. All of it runs in the overlay's thread.

Every step looks at what the kernel has and changes only the difference, so that it may be repeated after a crash at any
point, and so that a peer that joins or leaves disturbs no packet of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

from zlayer_driver.config import Transport
from zlayer_driver.errors import NetworkError
from zlayer_driver.host import netlink_messages as messages
from zlayer_driver.host.netlink import Batch, Socket
from zlayer_driver.host.netlink_messages import Link, Vxlan
from zlayer_driver.overlay.plan import Address, Guest, Peer, Plan, bridge_mac, transport_mac
from zlayer_driver.overlay.tunnel import WireGuard

_SYSCTL = Path("/proc/sys/net")
_PREFIX = len("02:7c")  # of a MAC: all links of ours of one kind have the same
_PER_ADDRESS = 6  # the version whose addresses a link answers for one by one; of the other it answers for all that has a way


class Fabric:
    """``tunnel`` is the WireGuard device; without one the transport is VXLAN."""

    def __init__(self, plan: Plan, sock: Socket, tunnel: WireGuard | None) -> None:
        self._plan = plan
        self._sock = sock
        self._tunnel = tunnel
        self.mtu = 0
        self.bridge = 0
        self.device = 0

    def build(self) -> None:
        """Makes bridge and transport device, or takes over those of an earlier process. Idempotent."""
        plan, underlay = self._plan, self._underlay()
        self.mtu = plan.inner_mtu(underlay.mtu)
        for other in set(Transport) - {plan.transport}:
            self._take_away(replace(plan, transport=other).device)
        mac = bridge_mac(plan.subnets)
        bridge = self._ensure(plan.bridge, "bridge", messages.bridge(plan.bridge, mtu=self.mtu, mac=mac), mac)
        self.bridge = bridge.index
        device = self._wireguard(self._tunnel) if self._tunnel else self._vxlan(underlay)
        self.device = device.index
        self._sock.send(
            Batch.join(
                [
                    messages.link_up(bridge.index, mtu=self.mtu),
                    messages.link_up(device.index, mtu=self.mtu),
                    *(
                        messages.address(bridge.index, address, subnet.prefixlen)
                        for address, subnet in zip(plan.subnets.own(), plan.subnets.each(), strict=True)
                    ),
                ]
            )
        )
        self._set_kernel_options()

    def _underlay(self) -> Link:
        """The link that has the address at which peers reach this node."""
        indexes = {index for index, address in messages.addresses(self._sock) if address == self._plan.endpoint}
        for link in messages.links(self._sock).values():
            if link.index in indexes:
                return link
        raise NetworkError(
            f"no link of this node has the overlay endpoint {self._plan.endpoint}", hint="set overlay.endpoint to one of its addresses"
        )

    def _ensure(self, name: str, kind: str, made: Batch, mac: str, settings: Vxlan | None = None) -> Link:
        """An earlier process's link stays if it is as ``made`` would make it: another share or setting needs another link."""
        found = messages.links(self._sock).get(name)
        if found and (found.kind != kind or found.mac[:_PREFIX] != mac[:_PREFIX]):
            raise NetworkError(f"link {name} is somebody else's", hint="name another overlay.bridge")
        if found and (found.mac, found.vxlan) == (mac, settings):
            return found
        if found:
            self._sock.send(messages.link_gone(name))
        self._sock.send(made)
        return messages.links(self._sock)[name]

    def _vxlan(self, underlay: Link) -> Link:
        plan, mac = self._plan, transport_mac(self._plan.subnets)
        settings = Vxlan(plan.vni, str(plan.endpoint), plan.port, underlay.index)
        return self._ensure(plan.device, "vxlan", messages.vxlan(plan.device, settings, mtu=self.mtu, mac=mac), mac, settings)

    def _wireguard(self, tunnel: WireGuard) -> Link:
        tunnel.ensure()
        if device := messages.links(self._sock).get(self._plan.device):
            return device
        raise NetworkError(
            f"a WireGuard process has the name {self._plan.device} in another network namespace", hint="name another overlay.bridge"
        )

    def _set_kernel_options(self) -> None:
        """Lets packets pass between bridge and transport, and between no other links where the kernel can tell them apart.

        With address translation packets pass between all links: what it sends out by any of them, its answers come in by.

        The bridge does not probe for a double of its link-local address, without which it asks for no neighbour: the first second's packets
        would be lost. Its MAC is the node's alone.
        """
        if self._plan.subnets.v6:
            (_SYSCTL / "ipv6/conf" / self._plan.bridge / "accept_dad").write_text("0")
        every = ("all",) if self._plan.translates else ()
        for name in (*every, self._plan.bridge, self._plan.device):
            (_SYSCTL / "ipv4/conf" / name / "forwarding").write_text("1")
            if self._plan.subnets.v6:
                forced = _SYSCTL / "ipv6/conf" / name / "force_forwarding"  # kernel 6.17; before, only all links can
                (forced if forced.exists() else _SYSCTL / "ipv6/conf/all/forwarding").write_text("1")

    def set_peers(self, peers: Sequence[Peer]) -> None:
        """Makes these the peers: adds what is missing, removes what is no longer wanted, and leaves the rest alone."""
        if self._tunnel:
            self._tunnel.set_peers(peers)
        else:
            self._change_ways(peers)
        self._change_routes(peers)

    def _change_routes(self, peers: Sequence[Peer]) -> None:
        wanted = {
            str(subnet): (subnet, None if self._tunnel else gateway, own)
            for peer in peers
            for subnet, gateway, own in zip(peer.subnets.each(), peer.subnets.own(), self._plan.subnets.own(), strict=False)
        }
        present = {target: via for target, via in messages.routes(self._sock, self.device).items() if not self._is_own(target)}
        changes = [
            messages.route(subnet, link=self.device, gateway=gateway, source=own)
            for text, (subnet, gateway, own) in wanted.items()
            if present.get(text) != (str(gateway) if gateway else "")
        ]
        changes += [messages.route_gone(ip_network(text), link=self.device) for text in present if text not in wanted]
        self._sock.send(Batch.join(changes))

    def _is_own(self, target: str) -> bool:
        """Whether a route leads to a guest: its address is of this node's subnet."""
        found = ip_network(target)
        return any(found.network_address in subnet for subnet in self._plan.subnets.each())

    def set_guest(self, guest: Guest) -> None:
        """Gives a guest its way through the tunnel; the bridge answers for it towards the containers beside it."""
        if self._tunnel is None:
            raise NetworkError("guests join by WireGuard, and the node has no tunnel")
        self._tunnel.set_guest(guest)
        changes = [
            messages.route(ip_network(address), link=self.device, source=own)
            for address, own in zip(guest.addresses, self._plan.subnets.own(), strict=True)
        ]
        changes += [messages.answer_for(self.bridge, address) for address in guest.addresses if address.version == _PER_ADDRESS]
        self._sock.send(Batch.join(changes))
        (_SYSCTL / "ipv4/conf" / self._plan.bridge / "proxy_arp").write_text("1")
        if len(guest.addresses) > 1:
            for option in ("forwarding", "proxy_ndp"):  # only what forwards answers for others
                (_SYSCTL / "ipv6/conf" / self._plan.bridge / option).write_text("1")

    def drop_guest(self, addresses: Sequence[Address]) -> None:
        """Takes its way back; unknown guests are fine."""
        if self._tunnel:
            self._tunnel.drop_guest(addresses)
        changes = [messages.route_gone(ip_network(address), link=self.device) for address in addresses]
        changes += [messages.answer_no_more(self.bridge, address) for address in addresses if address.version == _PER_ADDRESS]
        with messages.absent_is_fine():
            self._sock.send(Batch.join(changes))

    def _change_ways(self, peers: Sequence[Peer]) -> None:
        """The VXLAN device's static entries: which MAC a peer's gateway address has, and at which endpoint that MAC is."""
        macs = {str(address): (address, peer.mac) for peer in peers for address in peer.subnets.own()}
        endpoints = {peer.mac: peer.endpoint for peer in peers}
        near, far = messages.neighbours(self._sock, self.device), messages.forwardings(self._sock, self.device)
        changes = [messages.neighbour(self.device, address, mac) for text, (address, mac) in macs.items() if near.get(text) != mac]
        changes += [messages.forwarding(self.device, mac, to) for mac, to in endpoints.items() if far.get(mac) != str(to)]
        changes += [messages.neighbour_gone(self.device, ip_address(text)) for text in near if text not in macs]
        changes += [messages.forwarding_gone(self.device, mac) for mac in far if mac not in endpoints]
        self._sock.send(Batch.join(changes))

    def host_addresses(self, addresses: Sequence[Address], *, present: bool) -> None:
        """Has the node itself answer for addresses of its subnet, or no longer."""
        held = {address for index, address in messages.addresses(self._sock) if index == self.bridge}
        change = messages.address if present else messages.address_gone
        wanted = [address for address in addresses if (address in held) != present]
        self._sock.send(Batch.join([change(self.bridge, address, address.max_prefixlen) for address in wanted]))

    def remove(self) -> None:
        """Takes the node out of the overlay: its links, with every route, neighbour and address on them."""
        for name in (self._plan.device, self._plan.bridge):
            self._take_away(name)
        if self._tunnel:
            self._tunnel.stop()

    def _take_away(self, name: str) -> None:
        with messages.absent_is_fine():
            self._sock.send(messages.link_gone(name))
