"""Attach kind ``host_netns``: a veth pair between the node's bridge and a container's network namespace. Runs in the overlay's thread.

An attach is two sends: one message makes the pair with its peer already in the namespace, up and on the bridge; then one batch,
on a socket of the namespace, sets loopback, addresses, link and routes. A detach takes the link out of traffic, and the links that were taken
out are deleted together later: deleting one costs the kernel an RCU grace period, and so does deleting many. A lease is let go
only after its link.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from zlayer_driver.errors import NetworkError
from zlayer_driver.host import netlink_messages as messages
from zlayer_driver.host import netns
from zlayer_driver.host.netlink import Batch, Socket, Template
from zlayer_driver.overlay.fabric import Fabric
from zlayer_driver.overlay.leases import Lease, Leases
from zlayer_driver.overlay.nat import Nat
from zlayer_driver.overlay.plan import INTERFACE, Address, Plan, container_mac, mac_text
from zlayer_driver.readings import PortMapping

_OUT = 0x7A6C  # the link group of what was taken out of traffic
_INT = struct.Struct("=i")
# What stands for the values of one attach in the encoded messages.
_BLANK_NAME = "zlblankname0000"  # 15 characters: the longest name of a link
_BLANK_MAC = bytes.fromhex("02fe5a4cb1a7")
_BLANK_FD = 0x5A4CB1A1
_BLANK_INDEX = 0x5A4CB1A2
_BLANK_ADDRESSES = (ip_address("203.113.90.177"), ip_address("2001:db8:5a4c:b1a7:5a4c:b1a7:5a4c:b1a7"))


@dataclass(frozen=True, slots=True)
class Attachment:
    """A container in the overlay. ``link`` is the host's end, if there is one."""

    owner: str
    addresses: tuple[Address, ...]
    link: str = ""
    place: str = ""


class HostNetns:
    """Attaches namespaces by path. One owner, such as an allocation, has one attachment."""

    def __init__(self, plan: Plan, fabric: Fabric, leases: Leases, nat: Nat, sock: Socket) -> None:
        self._plan = plan
        self._fabric = fabric
        self._leases = leases
        self._nat = nat
        self._sock = sock
        self._pair = self._pair_template()
        self._inside = self._inside_template()
        self._out = Template(messages.link_out(_BLANK_NAME, group=_OUT), {"name": _BLANK_NAME.encode()})

    def attach(self, owner: str, place: str) -> Attachment:
        """Gives the namespace at ``place`` an interface, an address per family, and routes; again, it repairs what a crash left out.

        On failure nothing of it is left.
        """
        lease = self._leases.take(owner, place)
        attachment = self._attachment(lease)
        try:
            self._nat.ensure()
            self._join(attachment)
        except BaseException:
            self._take_out(self._leases.leave(owner) or lease)
            self.reap()
            raise
        return attachment

    def detach(self, owner: str) -> bool:
        """Takes it out of traffic at once; whether there is now something to `reap`. Of an unknown owner, nothing."""
        lease = self._leases.leave(owner)
        return lease is not None and self._take_out(lease)

    def describe(self, owner: str) -> Attachment | None:
        lease = self._leases.find(owner)
        return self._attachment(lease) if lease and not lease.leaving else None

    def publish(self, owner: str, ports: Sequence[PortMapping]) -> bool:
        """Makes these the ports of the node that lead to the owner's namespace; false if it has none."""
        attached = self.describe(owner)
        if attached is None or not attached.link:
            return False
        self._nat.publish(attached.addresses, ports)
        if ports:  # where a bridge's packets pass NAT themselves, a container that asks for its own port is answered by itself
            self._sock.send(messages.hairpin(socket.if_nametoindex(attached.link)))
        return True

    def reap(self) -> None:
        """Deletes what was taken out of traffic, and then frees its addresses."""
        gone = self._leases.leaving()
        with messages.absent_is_fine():
            self._sock.send(messages.group_gone(_OUT))
        for lease in gone:
            self._leases.release(lease)
        if gone and not self._leases.all():
            self._nat.remove()

    def sweep(self) -> None:
        """Frees what an earlier process left: leases whose place is gone, links without a lease, and what it did not reap."""
        kept = [lease for lease in self._leases.all() if not lease.leaving and self._is_there(lease)]
        held = {self._plan.link(lease.number) for lease in kept}
        for name in messages.links(self._sock):
            if name.startswith(self._plan.prefix) and name not in held:
                with messages.absent_is_fine():  # the kernel may be deleting it, with its namespace
                    self._sock.send(self._out.fill({"name": _name(name)}))
        self.reap()
        self._nat.sweep({address for lease in kept for address in self._plan.subnets.at(lease.number)})

    def _is_there(self, lease: Lease) -> bool:
        """Whether the lease's namespace is; one without a place is let go by its owner only."""
        if there := not lease.place or netns.is_alive(lease.place):
            return there
        self._leases.leave(lease.owner)
        return False

    def _attachment(self, lease: Lease) -> Attachment:
        link = self._plan.link(lease.number) if lease.place else ""
        return Attachment(lease.owner, self._plan.subnets.at(lease.number), link, lease.place)

    def _join(self, wanted: Attachment) -> None:
        with netns.opened(wanted.place) as there:
            self._make_pair(wanted, there)
            with netns.visit(there), Socket() as inside:
                inside.send(self._settings(wanted, socket.if_nametoindex(INTERFACE)))

    def _make_pair(self, wanted: Attachment, there: int) -> None:
        mac = container_mac(wanted.addresses[0])
        values = {"name": _name(wanted.link), "mac": mac, "fd": _INT.pack(there)}
        try:
            self._sock.send(self._pair.fill(values))
        except FileExistsError:
            if self._is_joined(wanted, there, mac):
                return
            with messages.absent_is_fine():
                self._sock.send(messages.link_gone(wanted.link))
            self._sock.send(self._pair.fill(values))

    def _is_joined(self, wanted: Attachment, there: int, mac: bytes) -> bool:
        """Whether the pair is there already, as it should be: of an attach that a crash cut short, or that is repeated."""
        outer = messages.links(self._sock).get(wanted.link)
        with netns.visit(there), Socket() as inside:
            inner = messages.links(inside).get(INTERFACE)
        if inner and (outer is None or outer.peer != inner.index):
            raise NetworkError(f"the namespace {wanted.place} has an interface {INTERFACE} of somebody else's")
        return bool(inner and outer and outer.up and outer.master == self._fabric.bridge and inner.mac == mac_text(mac))

    def _settings(self, wanted: Attachment, index: int) -> Batch:
        blanks = {f"v{address.version}": address.packed for address in wanted.addresses}
        return self._inside.fill({"index": _INT.pack(index), **blanks})

    def _take_out(self, lease: Lease) -> bool:
        if not lease.place:
            self._leases.release(lease)
            return False
        self._nat.withdraw(self._plan.subnets.at(lease.number))
        with messages.absent_is_fine():
            self._sock.send(self._out.fill({"name": _name(self._plan.link(lease.number))}))
        return True

    def _pair_template(self) -> Template:
        batch = messages.veth(
            _BLANK_NAME,
            bridge=self._fabric.bridge,
            mtu=self._fabric.mtu,
            peer=INTERFACE,
            peer_mac=mac_text(_BLANK_MAC),
            peer_netns_fd=_BLANK_FD,
        )
        return Template(batch, {"name": _BLANK_NAME.encode(), "mac": _BLANK_MAC, "fd": _INT.pack(_BLANK_FD)})

    def _inside_template(self) -> Template:
        blanks = {"index": _INT.pack(_BLANK_INDEX)}
        settings = [messages.link_up(1)]
        routes = []
        for blank, own, subnet, network in zip(
            _BLANK_ADDRESSES, self._plan.subnets.own(), self._plan.subnets.each(), self._plan.network.each(), strict=False
        ):
            blanks[f"v{blank.version}"] = blank.packed
            settings.append(messages.address(_BLANK_INDEX, blank, subnet.prefixlen))
            target = ip_network("0.0.0.0/0" if own.version == 4 else "::/0") if self._plan.default_route else network
            routes.append(messages.route(target, link=_BLANK_INDEX, gateway=own))
        return Template(Batch.join([*settings, messages.link_up(_BLANK_INDEX), *routes]), blanks)


def _name(link: str) -> bytes:
    """As it fills a blank name: the kernel reads up to the first zero."""
    return link.encode().ljust(len(_BLANK_NAME), b"\0")
