"""The kernel's WireGuard device: generic netlink, encoded and decoded by pyroute2. Formats: <linux/wireguard.h>, <linux/genetlink.h>."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Any

from zlayer_driver.host import netlink_messages as messages
from zlayer_driver.host.netlink import GENERIC, Batch, Socket
from zlayer_driver.host.wireguard import DeviceState, PeerChange, PeerState, endpoint_text

KIND = "wireguard"  # of the link, and the name of the family
_ACK, _DUMP = 0x5, 0x301
_GET_DEVICE, _SET_DEVICE = 0, 1
_CONTROL, _GET_FAMILY = 16, 3  # GENL_ID_CTRL, CTRL_CMD_GETFAMILY
_REMOVE, _REPLACE_ALLOWED = 1, 2  # WGPEER_F_…


class Kernel:
    """The kernel's own device. ``family`` is generic netlink's number for WireGuard, asked for when it is first needed."""

    def __init__(self, name: str, family: int = 0) -> None:
        self._name = name
        self._family = family

    def ensure(self) -> bool:
        try:
            with Socket() as sock:
                sock.send(messages.wireguard(self._name))
        except FileExistsError:
            return True
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return False
            raise
        return True

    def remove(self) -> None:
        with messages.absent_is_fine(), Socket() as sock:
            sock.send(messages.link_gone(self._name))

    def configure(self, peers: Sequence[PeerChange] = (), *, private_key: str = "", listen_port: int = 0) -> None:
        own: list[tuple[str, Any]] = [("WGDEVICE_A_PRIVATE_KEY", private_key)] if private_key else []
        own += [("WGDEVICE_A_LISTEN_PORT", listen_port)] if listen_port else []
        told = [self._message(_SET_DEVICE, _ACK, own)] if own else []
        told += [self._message(_SET_DEVICE, _ACK, [("WGDEVICE_A_PEERS", [{"attrs": _peer_attributes(peer)}])]) for peer in peers]
        with Socket(GENERIC) as sock:
            sock.send(Batch.join(told))

    def state(self) -> DeviceState:
        """A device with many peers is told in several messages, and a peer with many networks too: only the first has all of it."""
        with Socket(GENERIC) as sock:
            answers = [messages.decode(_form(), payload) for payload in sock.dump(self._message(_GET_DEVICE, _DUMP))]
        peers: dict[str, PeerState] = {}
        for answer in answers:
            for peer in answer.get_attr("WGDEVICE_A_PEERS") or ():
                key = peer.get_attr("WGPEER_A_PUBLIC_KEY").decode()
                peers[key] = _peer_state(peer, peers.get(key, PeerState("", frozenset())))
        port = max((answer.get_attr("WGDEVICE_A_LISTEN_PORT") or 0 for answer in answers), default=0)
        return DeviceState(port, peers)

    def _message(self, command: int, flags: int, attributes: messages.Attributes = ()) -> Batch:
        self._family = self._family or _family_number()
        what = f"{'configure' if command == _SET_DEVICE else 'read'} the WireGuard device {self._name}"
        fields = {"cmd": command, "version": 1}
        return messages.encode(_form(), self._family, flags, what, fields, [("WGDEVICE_A_IFNAME", self._name), *attributes])


def _form() -> Any:
    from pyroute2.netlink.generic.wireguard import wgmsg  # noqa: PLC0415  # only a node with the kernel's WireGuard pays for it

    return wgmsg


def _family_number() -> int:
    from pyroute2.netlink import ctrlmsg  # noqa: PLC0415  # likewise

    name = [("CTRL_ATTR_FAMILY_NAME", KIND)]
    asked = messages.encode(ctrlmsg, _CONTROL, _ACK, "find the kernel's WireGuard", {"cmd": _GET_FAMILY, "version": 1}, name)
    with Socket(GENERIC) as sock:
        (answer,) = sock.dump(asked)
    return int(messages.decode(ctrlmsg, answer).get_attr("CTRL_ATTR_FAMILY_ID"))


def _peer_attributes(peer: PeerChange) -> list[tuple[str, Any]]:
    attributes: list[tuple[str, Any]] = [
        ("WGPEER_A_PUBLIC_KEY", peer.public_key),
        ("WGPEER_A_FLAGS", _REMOVE if peer.remove else _REPLACE_ALLOWED),
    ]
    if peer.remove:
        return attributes
    if peer.endpoint:
        attributes.append(("WGPEER_A_ENDPOINT", {"addr": peer.endpoint[0], "port": peer.endpoint[1]}))
    if peer.keepalive_s:
        attributes.append(("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", peer.keepalive_s))
    return [*attributes, ("WGPEER_A_ALLOWEDIPS", [{"attrs": _network_attributes(network)} for network in peer.allowed])]


def _network_attributes(network: str) -> list[tuple[str, Any]]:
    address, _, length = network.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return [
        ("WGALLOWEDIP_A_FAMILY", family),
        ("WGALLOWEDIP_A_IPADDR", socket.inet_pton(family, address)),
        ("WGALLOWEDIP_A_CIDR_MASK", int(length)),
    ]


def _peer_state(peer: Any, before: PeerState) -> PeerState:
    at, met = peer.get_attr("WGPEER_A_ENDPOINT"), peer.get_attr("WGPEER_A_LAST_HANDSHAKE_TIME")
    allowed = before.allowed | {network["addr"] for network in peer.get_attr("WGPEER_A_ALLOWEDIPS") or ()}
    return PeerState(
        endpoint_text(at["addr"], at["port"]) if at else before.endpoint, allowed, met["tv_sec"] if met else before.handshake_s
    )
