"""What a node is in the overlay: frozen values, computed from the config and the peers, that the host then makes true.

The overlay is routed. Each node has a subnet per family; its first host address is the node's own, on a bridge, and containers get the
others. A peer's subnet is a route through the transport device: a node needs one entry per peer, whatever runs there, and no broadcast
ever leaves a node.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Self

from zlayer_driver.config import OverlayBlock, OverlayPeerBlock, Transport, parse
from zlayer_driver.errors import NetworkError
from zlayer_driver.overlay import keys

Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network

PLAN_FILE = "plan.json"
INTERFACE = "overlay0"  # in a container; under Nomad's bridge networks eth0 is CNI's
_OWN, _FIRST = 1, 2  # numbers within a subnet: the node's own address, and the first that a container may get
_MOST = 1 << 16
_LEAST_MTU = 1280  # what IPv6 needs
_AS_CONFIGURED = ("transport", "vni", "bridge", "mtu", "default_route", "masquerade", "publish")  # the same in the block and in the plan

PORTS = {Transport.VXLAN: 4789, Transport.WIREGUARD: 51820}
_OVERHEAD_BYTES = {
    (Transport.VXLAN, 4): 50,
    (Transport.VXLAN, 6): 70,
    (Transport.WIREGUARD, 4): 60,
    (Transport.WIREGUARD, 6): 80,
}


@dataclass(frozen=True, slots=True)
class Subnets:
    """A node's share of the overlay, or all of it: an IPv4 subnet, and an IPv6 one where the overlay has both."""

    v4: IPv4Network
    v6: IPv6Network | None = None

    @classmethod
    def of(cls, v4: str, v6: str | None) -> Self:
        return cls(IPv4Network(v4), IPv6Network(v6) if v6 else None)

    def each(self) -> tuple[Subnet, ...]:
        return (self.v4, self.v6) if self.v6 else (self.v4,)

    def keys(self, name: str) -> dict[str, Any]:
        """The keys of a config block that say it."""
        return {name: str(self.v4), f"{name}6": str(self.v6) if self.v6 else None}

    def own(self) -> tuple[Address, ...]:
        """The node's own addresses: gateways of its containers."""
        return self.at(_OWN)

    def at(self, number: int) -> tuple[Address, ...]:
        """The addresses with this number, IPv4 first."""
        return tuple(subnet.network_address + number for subnet in self.each())

    def number(self, address: Address) -> int:
        """The number of an address, by which `at` gives it; one that nobody may have for an address of elsewhere."""
        subnet = next((subnet for subnet in self.each() if subnet.version == address.version), None)
        return int(address) - int(subnet.network_address) if subnet else 0

    def numbers(self) -> range:
        """What containers may get: neither the network's own address nor, in IPv4, the broadcast address."""
        return range(_FIRST, min(self.v4.num_addresses - 1, _MOST))


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node. ``public_key`` is base64, empty under VXLAN."""

    name: str
    endpoint: Address
    port: int
    subnets: Subnets
    public_key: str = ""

    @property
    def mac(self) -> str:
        return transport_mac(self.subnets)


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest of this node that joins by WireGuard, with an address per family, IPv4 first. ``public_key`` is base64."""

    addresses: tuple[Address, ...]
    public_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """This node. ``mtu`` 0 is computed from the underlay; ``endpoint`` is the address at which peers reach the node."""

    name: str
    network: Subnets
    subnets: Subnets
    endpoint: Address
    transport: Transport
    port: int
    vni: int
    bridge: str
    mtu: int = 0
    default_route: bool = False
    masquerade: bool = False
    publish: bool = False
    peers: tuple[Peer, ...] = ()

    @classmethod
    def of(cls, block: OverlayBlock, share: Subnets | None = None) -> Self:
        """The plan that the operator's block describes, with the share that somebody else chose, if somebody did."""
        port = PORTS[block.transport]
        return cls(
            name=block.name or os.uname().nodename,
            network=Subnets.of(block.network, block.network6),
            subnets=share or Subnets.of(block.subnet or "", block.subnet6),
            endpoint=ip_address(block.endpoint),
            port=block.port or port,
            **{name: getattr(block, name) for name in _AS_CONFIGURED},
            peers=tuple(
                Peer(peer.name, ip_address(peer.endpoint), peer.port or port, Subnets.of(peer.subnet, peer.subnet6), peer.public_key)
                for peer in block.peer
            ),
        )

    def as_peer(self, public_key: str) -> Peer:
        """The node, as the others see it."""
        return Peer(self.name, self.endpoint, self.port, self.subnets, public_key)

    def fault_of(self, peer: Peer) -> str:
        """Why this node cannot reach one whose settings come from elsewhere; empty if nothing speaks against it."""
        if peer.endpoint.version != self.endpoint.version:
            return f"its endpoint {peer.endpoint} is of another family than {self.endpoint}"
        if self.transport is Transport.WIREGUARD and not keys.raw(peer.public_key):
            return "it has no WireGuard key"
        for subnet, own, whole in zip(peer.subnets.each(), self.subnets.each(), self.network.each(), strict=False):
            if subnet.overlaps(own) or subnet.prefixlen < whole.prefixlen or not subnet.overlaps(whole):
                return f"its subnet {subnet} is this node's, or not of the overlay {whole}"
        return ""

    def dumps(self) -> str:
        """The plan as the JSON of an `OverlayBlock`."""
        block = OverlayBlock(
            name=self.name,
            endpoint=str(self.endpoint),
            port=self.port,
            **{name: getattr(self, name) for name in _AS_CONFIGURED},
            peer=[
                OverlayPeerBlock(
                    name=peer.name, endpoint=str(peer.endpoint), port=peer.port, public_key=peer.public_key, **peer.subnets.keys("subnet")
                )
                for peer in self.peers
            ],
            **self.network.keys("network"),
            **self.subnets.keys("subnet"),
        )
        return block.model_dump_json(indent=2)

    @classmethod
    def loads(cls, text: str | bytes) -> Self:
        """The plan that `dumps` wrote; `ConfigError` for anything else."""
        try:
            raw = json.loads(text)
        except ValueError:
            raw = {}
        return cls.of(parse(OverlayBlock, raw, what=PLAN_FILE))

    @property
    def device(self) -> str:
        """The transport's link."""
        return f"{self.bridge}-{'vx' if self.transport is Transport.VXLAN else 'wg'}"

    @property
    def translates(self) -> bool:
        """Whether the node changes addresses of packets."""
        return self.masquerade or self.publish

    def link(self, number: int) -> str:
        """The host end of the pair of the container with this number."""
        return f"{self.prefix}{number:x}"

    @property
    def prefix(self) -> str:
        """How the names of all host ends begin, and of nothing else."""
        return f"{self.bridge}."

    def inner_mtu(self, underlay_mtu: int) -> int:
        """The largest packet that fits the underlay once it is wrapped."""
        mtu = self.mtu or underlay_mtu - _OVERHEAD_BYTES[self.transport, self.endpoint.version]
        if mtu < _LEAST_MTU:
            raise NetworkError(f"an MTU of {mtu} bytes is too small for the overlay", hint=f"it needs {_LEAST_MTU}; raise the underlay's")
        return mtu


def container_mac(address: Address) -> bytes:
    """A locally administered MAC that follows from the container's IPv4 address."""
    return b"\x02\x7a" + address.packed


def bridge_mac(subnets: Subnets) -> str:
    return mac_text(b"\x02\x7c" + subnets.own()[0].packed)


def transport_mac(subnets: Subnets) -> str:
    """The MAC of a node's VXLAN device, which every peer can compute."""
    return mac_text(b"\x02\x7b" + subnets.own()[0].packed)


def mac_text(mac: bytes) -> str:
    return mac.hex(":")
