"""rtnetlink messages, encoded and decoded by pyroute2, which is imported at their first use: that takes some 150 ms."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, NamedTuple

from zlayer_driver.host.netlink import Batch, Socket

Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network

_ACK, _REPLACE, _EXCL, _CREATE, _DUMP = 0x5, 0x100, 0x200, 0x400, 0x301  # each with NLM_F_REQUEST
_LINK, _ADDRESS, _ROUTE, _NEIGHBOUR = 16, 20, 24, 28  # RTM_NEW…; RTM_DEL… is one more, RTM_GET… two
_UP = 1  # IFF_UP
_NODAD_PERMANENT = 0x82  # IFA_F_NODAD, IFA_F_PERMANENT
_NUD_PERMANENT, _NUD_NOARP = 0x80, 0x40
_NTF_SELF = 0x02
_NTF_PROXY = 0x08
_PF_BRIDGE = 7
_ONLINK = 4  # RTNH_F_ONLINK
_NESTED = 1 << 15  # NLA_F_NESTED
_MAIN, _STATIC, _UNICAST, _LINK_SCOPE = 254, 4, 1, 253

# A queue per CPU, a veth's default, is only used where XDP is; each costs the making of a pair several sysfs entries.
_ONE_QUEUE = (("IFLA_NUM_TX_QUEUES", 1), ("IFLA_NUM_RX_QUEUES", 1))

Attributes = Sequence[tuple[str, Any] | tuple[str, Any, int]]  # name, value, and flags of the attribute


@cache
def _classes() -> dict[int, Any]:
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # noqa: PLC0415  # a plugin that attaches nothing never pays for it
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # noqa: PLC0415  # likewise
    from pyroute2.netlink.rtnl.ndmsg import ndmsg  # noqa: PLC0415  # likewise
    from pyroute2.netlink.rtnl.rtmsg import rtmsg  # noqa: PLC0415  # likewise

    return {_LINK: ifinfmsg, _ADDRESS: ifaddrmsg, _ROUTE: rtmsg, _NEIGHBOUR: ndmsg}


def _message(kind: int, flags: int, what: str, fields: Mapping[str, int], attributes: Attributes = ()) -> Batch:
    return encode(_classes()[kind & ~3], kind, flags, what, fields, attributes)


def encode(form: Any, kind: int, flags: int, what: str, fields: Mapping[str, int], attributes: Attributes) -> Batch:
    """A message by pyroute2's class for it."""
    message = form()
    for field, value in fields.items():
        message[field] = value
    message["attrs"] = list(attributes)
    message["header"]["type"] = kind
    message["header"]["flags"] = flags
    message.encode()
    return Batch(bytes(message.data), (what,))


def decode(form: Any, payload: bytes) -> Any:
    """An answer by pyroute2's class for it, which decodes from a whole message: the payload gets a header of its own again."""
    message = form((16 + len(payload)).to_bytes(4, "little") + bytes(12) + payload)
    message.decode()
    return message


def _read(sock: Socket, kind: int, what: str, fields: Mapping[str, int], attributes: Attributes = ()) -> list[Any]:
    answers = sock.dump(_message(kind + 2, _DUMP, what, fields, attributes))
    return [decode(_classes()[kind], payload) for payload in answers]


# Links.


class Vxlan(NamedTuple):
    """What a VXLAN device is made with and cannot change; ``underlay`` is the index of a link."""

    vni: int
    local: str
    port: int
    underlay: int


@dataclass(frozen=True, slots=True)
class Link:
    """``peer`` is the index of a veth's other end, in the other namespace's numbering."""

    index: int
    name: str
    kind: str
    up: bool
    mtu: int
    mac: str
    master: int
    peer: int
    vxlan: Vxlan | None


def _nested(kind: str, data: Attributes = ()) -> tuple[str, Any]:
    info: list[tuple[str, Any]] = [("IFLA_INFO_KIND", kind)]
    if data:
        info.append(("IFLA_INFO_DATA", {"attrs": list(data)}))
    return "IFLA_LINKINFO", {"attrs": info}


def veth(name: str, *, bridge: int, mtu: int, peer: str, peer_mac: str, peer_netns_fd: int) -> Batch:
    """A pair whose host end is a port of the bridge and up, and whose peer is in another namespace from its birth, and down.

    The kernel refuses a peer that is up already (ENOTCONN): its other half does not exist yet.
    """
    other = [
        ("IFLA_IFNAME", peer),
        ("IFLA_ADDRESS", peer_mac),
        ("IFLA_MTU", mtu),
        ("IFLA_NET_NS_FD", peer_netns_fd),
        *_ONE_QUEUE,
    ]
    attributes = [
        ("IFLA_IFNAME", name),
        ("IFLA_MTU", mtu),
        ("IFLA_MASTER", bridge),
        *_ONE_QUEUE,
        _nested("veth", [("VETH_INFO_PEER", {"attrs": other})]),
    ]
    return _message(_LINK, _ACK | _CREATE | _EXCL, f"make the pair {name}", {"flags": _UP, "change": _UP}, attributes)


def bridge(name: str, *, mtu: int, mac: str) -> Batch:
    attributes = [("IFLA_IFNAME", name), ("IFLA_MTU", mtu), ("IFLA_ADDRESS", mac), _nested("bridge")]
    return _message(_LINK, _ACK | _CREATE | _EXCL, f"make the bridge {name}", {}, attributes)


def vxlan(name: str, settings: Vxlan, *, mtu: int, mac: str) -> Batch:
    """A VXLAN device that learns nothing and floods nothing: it knows the ways that it is told."""
    data = [
        ("IFLA_VXLAN_ID", settings.vni),
        ("IFLA_VXLAN_LOCAL6" if ":" in settings.local else "IFLA_VXLAN_LOCAL", settings.local),
        ("IFLA_VXLAN_LINK", settings.underlay),
        ("IFLA_VXLAN_PORT", settings.port),
        ("IFLA_VXLAN_LEARNING", 0),
    ]
    attributes = [("IFLA_IFNAME", name), ("IFLA_MTU", mtu), ("IFLA_ADDRESS", mac), _nested("vxlan", data)]
    return _message(_LINK, _ACK | _CREATE | _EXCL, f"make the VXLAN device {name}", {}, attributes)


def wireguard(name: str) -> Batch:
    attributes = [("IFLA_IFNAME", name), _nested("wireguard")]
    return _message(_LINK, _ACK | _CREATE | _EXCL, f"make the WireGuard device {name}", {}, attributes)


def link_up(index: int, *, mtu: int = 0) -> Batch:
    attributes = [("IFLA_MTU", mtu)] if mtu else []
    return _message(_LINK, _ACK, f"set link {index} up", {"index": index, "flags": _UP, "change": _UP}, attributes)


def hairpin(index: int) -> Batch:
    """Lets a bridge send a packet back by the port that it came in by."""
    attributes = [("IFLA_PROTINFO", {"attrs": [("IFLA_BRPORT_MODE", 1)]}, _NESTED)]
    return _message(_LINK + 3, _ACK, f"let packets turn round at link {index}", {"family": _PF_BRIDGE, "index": index}, attributes)


def link_out(name: str, *, group: int) -> Batch:
    """Takes a link out of traffic: down, off its bridge, and in a group that is deleted as one later."""
    attributes = [("IFLA_IFNAME", name), ("IFLA_MASTER", 0), ("IFLA_GROUP", group)]
    return _message(_LINK, _ACK, f"take link {name} out", {"flags": 0, "change": _UP}, attributes)


def link_gone(name: str) -> Batch:
    return _message(_LINK + 1, _ACK, f"delete link {name}", {}, [("IFLA_IFNAME", name)])


def group_gone(group: int) -> Batch:
    return _message(_LINK + 1, _ACK, f"delete the links of group {group}", {}, [("IFLA_GROUP", group)])


def links(sock: Socket) -> dict[str, Link]:
    """Every link of the namespace, by name."""
    found = {}
    for message in _read(sock, _LINK, "read links", {}):
        info = message.get_attr("IFLA_LINKINFO")
        name = message.get_attr("IFLA_IFNAME")
        found[name] = Link(
            index=message["index"],
            name=name,
            kind=(info.get_attr("IFLA_INFO_KIND") if info else None) or "",
            up=bool(message["flags"] & _UP),
            mtu=message.get_attr("IFLA_MTU") or 0,
            mac=message.get_attr("IFLA_ADDRESS") or "",
            master=message.get_attr("IFLA_MASTER") or 0,
            peer=message.get_attr("IFLA_LINK") or 0,
            vxlan=_vxlan_settings(info),
        )
    return found


def _vxlan_settings(info: Any) -> Vxlan | None:
    if not info or info.get_attr("IFLA_INFO_KIND") != "vxlan":
        return None
    data = info.get_attr("IFLA_INFO_DATA")
    local = data.get_attr("IFLA_VXLAN_LOCAL") or data.get_attr("IFLA_VXLAN_LOCAL6") or ""
    return Vxlan(data.get_attr("IFLA_VXLAN_ID"), local, data.get_attr("IFLA_VXLAN_PORT"), data.get_attr("IFLA_VXLAN_LINK") or 0)


# Addresses, routes, neighbours.


def _family(of: Address | Subnet) -> int:
    return socket.AF_INET if of.version == 4 else socket.AF_INET6


def address(index: int, address: Address, prefix_length: int) -> Batch:
    """Sets an address, at once usable: overlay addresses are leased, so that none is probed for a double."""
    fields = {"family": _family(address), "prefixlen": prefix_length, "flags": _NODAD_PERMANENT, "index": index}
    attributes = [("IFA_LOCAL", str(address)), ("IFA_ADDRESS", str(address))]
    return _message(_ADDRESS, _ACK | _CREATE | _REPLACE, f"set address {address}", fields, attributes)


def address_gone(index: int, address: Address, prefix_length: int) -> Batch:
    fields = {"family": _family(address), "prefixlen": prefix_length, "index": index}
    return _message(_ADDRESS + 1, _ACK, f"delete address {address}", fields, [("IFA_LOCAL", str(address)), ("IFA_ADDRESS", str(address))])


def addresses(sock: Socket) -> list[tuple[int, Address]]:
    """Link index and address of each, of both families."""
    found = _read(sock, _ADDRESS, "read addresses", {})
    return [
        (message["index"], ip_address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")))
        for message in found
        if message["family"] in (socket.AF_INET, socket.AF_INET6)
    ]


def route(target: Subnet, *, link: int, gateway: Address | None = None, source: Address | None = None) -> Batch:
    """A route out of ``link``; the gateway need not be in any subnet of it."""
    attributes = _route_attributes(target, link)
    if gateway:
        attributes.append(("RTA_GATEWAY", str(gateway)))
    if source:
        attributes.append(("RTA_PREFSRC", str(source)))
    fields = _route_fields(target) | {
        "proto": _STATIC,
        "type": _UNICAST,
        "scope": 0 if gateway or target.version == 6 else _LINK_SCOPE,
        "flags": _ONLINK if gateway else 0,
    }
    return _message(_ROUTE, _ACK | _CREATE | _REPLACE, f"set the route to {target}", fields, attributes)


def route_gone(target: Subnet, *, link: int) -> Batch:
    fields = _route_fields(target) | {"scope": 255}
    return _message(_ROUTE + 1, _ACK, f"delete the route to {target}", fields, _route_attributes(target, link))


def _route_fields(target: Subnet) -> dict[str, int]:
    return {"family": _family(target), "dst_len": target.prefixlen, "table": _MAIN}


def _route_attributes(target: Subnet, link: int) -> list[tuple[str, Any]]:
    return [*([("RTA_DST", str(target.network_address))] if target.prefixlen else []), ("RTA_OIF", link)]


def routes(sock: Socket, link: int) -> dict[str, str]:
    """Gateways (or an empty text) of the main table's routes out of ``link``, by their target; the kernel's own are left out."""
    found = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for message in _read(sock, _ROUTE, "read routes", {"family": family, "table": _MAIN}, [("RTA_OIF", link)]):
            if message["proto"] == _STATIC:
                target = message.get_attr("RTA_DST") or ("0.0.0.0" if family == socket.AF_INET else "::")  # noqa: S104  # a default route
                found[f"{target}/{message['dst_len']}"] = message.get_attr("RTA_GATEWAY") or ""
    return found


def neighbour(link: int, address: Address, mac: str) -> Batch:
    """Binds an address to a MAC for good: nobody asks for it on the wire."""
    fields = {"family": _family(address), "ifindex": link, "state": _NUD_PERMANENT}
    return _message(
        _NEIGHBOUR, _ACK | _CREATE | _REPLACE, f"set neighbour {address}", fields, [("NDA_DST", str(address)), ("NDA_LLADDR", mac)]
    )


def neighbour_gone(link: int, address: Address) -> Batch:
    return _message(
        _NEIGHBOUR + 1, _ACK, f"delete neighbour {address}", {"family": _family(address), "ifindex": link}, [("NDA_DST", str(address))]
    )


def answer_for(link: int, address: Address) -> Batch:
    """Has a link answer who asks there for an IPv6 address that is elsewhere. Permanent, or it goes when the link has no carrier."""
    fields = {"family": socket.AF_INET6, "ifindex": link, "state": _NUD_PERMANENT, "flags": _NTF_PROXY}
    return _message(_NEIGHBOUR, _ACK | _CREATE | _REPLACE, f"answer for {address}", fields, [("NDA_DST", str(address))])


def answer_no_more(link: int, address: Address) -> Batch:
    """Takes `answer_for` back."""
    fields = {"family": socket.AF_INET6, "ifindex": link, "flags": _NTF_PROXY}
    return _message(_NEIGHBOUR + 1, _ACK, f"no longer answer for {address}", fields, [("NDA_DST", str(address))])


def neighbours(sock: Socket, link: int) -> dict[str, str]:
    """MACs of the permanent neighbours of a link, by address."""
    found = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for message in _read(sock, _NEIGHBOUR, "read neighbours", {"family": family}, [("NDA_IFINDEX", link)]):
            if message["state"] & _NUD_PERMANENT:
                found[message.get_attr("NDA_DST")] = message.get_attr("NDA_LLADDR")
    return found


def forwarding(link: int, mac: str, remote: Address) -> Batch:
    """Has a VXLAN device send what is for ``mac`` to the node at ``remote``."""
    fields = {"family": _PF_BRIDGE, "ifindex": link, "state": _NUD_PERMANENT | _NUD_NOARP, "flags": _NTF_SELF}
    attributes = [("NDA_DST", str(remote)), ("NDA_LLADDR", mac)]
    return _message(_NEIGHBOUR, _ACK | _CREATE | _REPLACE, f"set the way to {remote}", fields, attributes)


def forwarding_gone(link: int, mac: str) -> Batch:
    fields = {"family": _PF_BRIDGE, "ifindex": link, "flags": _NTF_SELF}
    return _message(_NEIGHBOUR + 1, _ACK, f"delete the way to {mac}", fields, [("NDA_LLADDR", mac)])


def forwardings(sock: Socket, link: int) -> dict[str, str]:
    """Remote addresses of a VXLAN device's entries, by MAC."""
    found = {}
    for message in _read(sock, _NEIGHBOUR, "read forwarding entries", {"family": _PF_BRIDGE, "ifindex": link}):
        if (remote := message.get_attr("NDA_DST")) and message["ifindex"] == link:
            found[message.get_attr("NDA_LLADDR")] = remote
    return found


@contextmanager
def absent_is_fine() -> Iterator[None]:
    """For messages about what may be gone, or may never have been there."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ESRCH, errno.ENOENT, errno.ENXIO):
            raise
