"""Address translation for a node's containers: what leaves the overlay gets the node's address, and ports of the node lead to containers.

One nftables table of the bridge's name holds it all, in the node's network namespace. It is there while the node has leases. Each published port
is an entry of a map whose value says whose it is, so that the kernel's table is the only record. Runs in the overlay's thread.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from ipaddress import ip_address

from zlayer_driver.errors import NetworkError
from zlayer_driver.host import nftables
from zlayer_driver.host.netlink import Batch
from zlayer_driver.overlay.plan import Address, Plan
from zlayer_driver.readings import PortMapping

_FAMILIES = {4: nftables.IPV4, 6: nftables.IPV6}
_MAPS = {4: "ports4", 6: "ports6"}
_PROTOCOLS = {"tcp": nftables.TCP, "udp": nftables.UDP}
_PORT = struct.Struct("!Hxx")  # values of a map fill up to 4 bytes
_ABSENT = (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)  # what a kernel without nftables says

Entries = dict[bytes, bytes]


class Nat:
    """Does nothing where the plan wants none of it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._table = plan.bridge

    def ensure(self) -> None:
        """Makes the table unless it is there, also where somebody else deleted it. Idempotent."""
        if self._plan.translates and not nftables.has_table(self._table):
            self._make()

    def _make(self) -> None:
        """The table as the plan wants it; ports of an earlier one stay."""
        try:
            nftables.change([nftables.table(self._table), *self._chains()])
        except OSError as error:
            if error.errno in _ABSENT:
                raise NetworkError("this kernel has no nftables", hint="unset overlay.masquerade and overlay.publish") from error
            raise

    def _chains(self) -> list[Batch]:
        chains = [nftables.nat_chain(self._table, hook) for hook in nftables.HOOKS]
        for version, name in _MAPS.items():
            family = _FAMILIES[version]
            chains.append(nftables.port_map(self._table, name, family))
            chains += [nftables.rule(self._table, hook, nftables.redirect_by(name, family)) for hook in ("prerouting", "output")]
        return [*chains, *(nftables.rule(self._table, "postrouting", [*packets, *nftables.masquerade()]) for packets in self._masked())]

    def _masked(self) -> Iterator[list[nftables.Expression]]:
        """Which packets get an address of the node: those that leave the overlay, and those whose answers would miss the node."""
        bridge, device = self._plan.bridge, self._plan.device
        if self._plan.masquerade:
            outward = [*nftables.link_is("out", bridge, truly=False), *nftables.link_is("out", device, truly=False)]
            yield [*nftables.link_is("in", bridge), *outward]
        redirected = [*nftables.link_is("out", bridge), *nftables.was_redirected()]
        if self._plan.default_route:  # then answers pass the node anyway, but for those to neighbours
            yield from ([*nftables.comes_from(subnet), *redirected] for subnet in self._plan.subnets.each())
        else:
            yield redirected

    def publish(self, container: Sequence[Address], ports: Sequence[PortMapping]) -> None:
        """Makes these the ports that lead to a container; one that led to another leads to this one now."""
        if not self._plan.publish:
            return
        wanted: dict[int, Entries] = {version: {} for version in _MAPS}
        for port in ports:
            at = ip_address(port.host_address) if port.host_address else self._plan.endpoint
            target = next((address for address in container if address.version == at.version), None)
            if target is None:
                raise NetworkError(f"port {port.host_port} of {at} cannot lead to a container that has no IPv{at.version} address")
            key = at.packed + bytes([_PROTOCOLS[port.protocol], 0, 0, 0]) + _PORT.pack(port.host_port)
            wanted[at.version][key] = target.packed + _PORT.pack(port.container_port)
        self.ensure()
        self._change(wanted, lambda target: target in container)

    def withdraw(self, container: Sequence[Address]) -> None:
        """No port leads to the container any more. Idempotent."""
        if self._plan.publish:
            self._change({}, lambda target: target in container)

    def sweep(self, held: Collection[Address]) -> None:
        """Brings the table of an earlier process to what the plan wants now: no port leads to an address that nobody has."""
        if held and self._plan.translates:
            self._make()
            self._change({}, lambda target: not self._plan.publish or target not in held)
        else:
            self.remove()

    def _change(self, wanted: Mapping[int, Entries], is_mine: Callable[[Address], bool]) -> None:
        """Sets entries, and takes away others with their keys or of the same container."""
        changes = []
        for version, name in _MAPS.items():
            present, new = nftables.read_elements(self._table, name), wanted.get(version, {})
            gone = {
                key: value
                for key, value in present.items()
                if new.get(key) != value and (key in new or is_mine(ip_address(value[: -_PORT.size])))
            }
            changes += nftables.elements(self._table, name, gone, gone=True)
            changes += nftables.elements(self._table, name, {key: value for key, value in new.items() if present.get(key) != value})
        if changes:
            nftables.change(changes)

    def remove(self) -> None:
        """Takes the table away; none there is fine."""
        try:
            nftables.change([nftables.table_gone(self._table)])
        except OSError as error:
            if error.errno not in (errno.ENOENT, *_ABSENT):
                raise
