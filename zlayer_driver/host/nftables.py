"""nftables messages, encoded and decoded by pyroute2: tables, NAT chains, their rules, and maps. Formats: <linux/netfilter/nf_tables.h>.

A transaction is done whole or not at all. The kernel's registers hold 4 bytes each; values that are looked up together lie in registers in a row.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from zlayer_driver.host.netlink import NETFILTER, Batch, Socket
from zlayer_driver.host.netlink_messages import Attributes, decode, encode

IPV4, IPV6 = 2, 10  # NFPROTO_…
TCP, UDP = 6, 17

_INET = 1  # NFPROTO_INET: a table for both families
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_BEGIN, _END, _NFTABLES = 0x10, 0x11, 10
_REQUEST, _ACK, _CREATE, _APPEND, _DUMP = 0x1, 0x5, 0x400, 0x800, 0x300
_TABLE, _CHAIN, _RULE, _SET, _ELEMENT = 0, 3, 6, 9, 12  # NFT_MSG_NEW…; GET is one more, DEL two
_IS_MAP = "NFT_SET_MAP"
_REGISTER = 8  # NFT_REG32_00
_ADDRESS_BYTES = {IPV4: 4, IPV6: 16}
_SOURCE_AT, _DESTINATION_AT = {IPV4: 12, IPV6: 8}, {IPV4: 16, IPV6: 24}  # in the network header
_TYPES = {IPV4: 7, IPV6: 8}  # nft's own numbers, by which its tool shows a map: ipv4_addr, ipv6_addr, inet_proto, inet_service
_PROTOCOL_TYPE, _PORT_TYPE = 12, 13
_DNAT_STATUS = 1 << 5  # IPS_DST_NAT
HOOKS = {"prerouting": (0, -100), "output": (3, -100), "postrouting": (4, 100)}  # number, and the priority of NAT there

Expression = tuple[str, Attributes]


@cache
def _classes() -> Mapping[int, Any]:
    from pyroute2.netlink.nfnetlink import nftsocket  # noqa: PLC0415  # a node without NAT never pays for it

    return {
        _TABLE: nftsocket.nft_table_msg,
        _CHAIN: nftsocket.nft_chain_msg,
        _RULE: nftsocket.nft_rule_msg,
        _SET: nftsocket.nft_set_msg,
        _ELEMENT: nftsocket.nft_set_elem_list_msg,
    }


def _message(kind: int, flags: int, what: str, attributes: Attributes, *, change: int = 0) -> Batch:
    """``change`` 0 is a NEW message, 1 a GET, 2 a DEL."""
    return encode(_classes()[kind], _SUBSYSTEM | kind + change, flags, what, {"nfgen_family": _INET}, attributes)


def _transaction(parts: Sequence[Batch]) -> Batch:
    edge = struct.Struct("=IHHIIBBH")  # a header, then struct nfgenmsg
    begin, end = (
        edge.pack(edge.size, kind, _REQUEST, 0, 0, 0, 0, struct.unpack("=H", struct.pack("!H", _NFTABLES))[0]) for kind in (_BEGIN, _END)
    )
    joined = Batch.join(parts)
    return Batch(begin + joined.data + end, joined.names)


def change(parts: Sequence[Batch]) -> None:
    """Has the kernel do all of it or nothing, in the calling thread's network namespace."""
    with Socket(NETFILTER) as sock:
        sock.send(_transaction(parts))


def _ask(asked: Batch) -> list[bytes] | None:
    """The answers; ``None`` where nothing has that name, or the kernel has no nftables."""
    try:
        with Socket(NETFILTER) as sock:
            return sock.dump(asked)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.EPROTONOSUPPORT):
            raise
        return None


# Tables, chains, maps.


def table(name: str) -> Batch:
    """There once this is done, whether it was before or not; so for chains and maps."""
    return _message(_TABLE, _ACK | _CREATE, f"make the nftables table {name}", [("NFTA_TABLE_NAME", name)])


def table_gone(name: str) -> Batch:
    return _message(_TABLE, _ACK, f"delete the nftables table {name}", [("NFTA_TABLE_NAME", name)], change=2)


def has_table(name: str) -> bool:
    """False, too, for a kernel that has no nftables."""
    asked = _message(_TABLE, _ACK, f"look for the nftables table {name}", [("NFTA_TABLE_NAME", name)], change=1)
    return _ask(asked) is not None


def nat_chain(table: str, hook: str) -> Batch:
    """The NAT chain of a hook, which names it, without rules."""
    number, priority = HOOKS[hook]
    place = {"attrs": [("NFTA_HOOK_HOOKNUM", number), ("NFTA_HOOK_PRIORITY", priority)]}
    attributes = [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", hook), ("NFTA_CHAIN_HOOK", place), ("NFTA_CHAIN_TYPE", "nat")]
    made = _message(_CHAIN, _ACK | _CREATE, f"make the nftables chain {hook}", attributes)
    flushed = [("NFTA_RULE_TABLE", table), ("NFTA_RULE_CHAIN", hook)]
    return Batch.join([made, _message(_RULE, _ACK, f"empty the nftables chain {hook}", flushed, change=2)])


def port_map(table: str, name: str, family: int) -> Batch:
    """From address, protocol and port to address and port."""
    address_type, size = _TYPES[family], _ADDRESS_BYTES[family]
    attributes = [
        ("NFTA_SET_TABLE", table),
        ("NFTA_SET_NAME", name),
        ("NFTA_SET_FLAGS", frozenset({_IS_MAP})),
        ("NFTA_SET_KEY_TYPE", address_type << 12 | _PROTOCOL_TYPE << 6 | _PORT_TYPE),
        ("NFTA_SET_KEY_LEN", size + 8),
        ("NFTA_SET_DATA_TYPE", address_type << 6 | _PORT_TYPE),
        ("NFTA_SET_DATA_LEN", size + 4),
        ("NFTA_SET_ID", family),
    ]
    return _message(_SET, _ACK | _CREATE, f"make the nftables map {name}", attributes)


def elements(table: str, name: str, found: Mapping[bytes, bytes], *, gone: bool = False) -> list[Batch]:
    """Sets entries of a map, or takes them away; no message for none."""
    if not found:
        return []
    listed = [
        {"attrs": [("NFTA_SET_ELEM_KEY", _data(key)), *([] if gone else [("NFTA_SET_ELEM_DATA", _data(value))])]}
        for key, value in found.items()
    ]
    attributes = [
        ("NFTA_SET_ELEM_LIST_TABLE", table),
        ("NFTA_SET_ELEM_LIST_SET", name),
        ("NFTA_SET_ELEM_LIST_ELEMENTS", listed),
    ]
    if gone:
        return [_message(_ELEMENT, _ACK, f"take entries from the nftables map {name}", attributes, change=2)]
    return [_message(_ELEMENT, _ACK | _CREATE, f"set entries of the nftables map {name}", attributes)]


def read_elements(table: str, name: str) -> dict[bytes, bytes]:
    """The entries of a map; none where there is no such map or table, or no nftables."""
    attributes = [("NFTA_SET_ELEM_LIST_TABLE", table), ("NFTA_SET_ELEM_LIST_SET", name)]
    asked = _message(_ELEMENT, _REQUEST | _DUMP, f"read the nftables map {name}", attributes, change=1)
    found = {}
    for payload in _ask(asked) or ():
        for entry in decode(_classes()[_ELEMENT], payload).get_attr("NFTA_SET_ELEM_LIST_ELEMENTS") or ():
            found[_value(entry, "NFTA_SET_ELEM_KEY")] = _value(entry, "NFTA_SET_ELEM_DATA")
    return found


def _data(value: bytes) -> dict[str, Attributes]:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


def _value(entry: Any, name: str) -> bytes:
    value: bytes = entry.get_attr(name).get_attr("NFTA_DATA_VALUE")
    return value


# Rules: what a packet must be, then what happens to it.


def rule(table: str, chain: str, expressions: Sequence[Expression]) -> Batch:
    """A rule at the end of a chain."""
    listed = [{"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": [*data]})]} for name, data in expressions]
    attributes = [("NFTA_RULE_TABLE", table), ("NFTA_RULE_CHAIN", chain), ("NFTA_RULE_EXPRESSIONS", listed)]
    return _message(_RULE, _ACK | _CREATE | _APPEND, f"add a rule to the nftables chain {chain}", attributes)


def link_is(way: str, name: str, *, truly: bool = True) -> list[Expression]:
    """Whether the packet came in by a link (``way`` is ``in``) or goes out by it (``out``); or whether it does not."""
    key = {"in": 6, "out": 7}[way]  # NFT_META_IIFNAME, NFT_META_OIFNAME
    return [_meta(key, _REGISTER), _compare(name.encode().ljust(16, b"\0"), equal=truly)]


def comes_from(subnet: IPv4Network | IPv6Network) -> list[Expression]:
    """Whether the packet has a source in the subnet."""
    family = IPV4 if subnet.version == 4 else IPV6
    return [
        *_is_of(family),
        _address(_SOURCE_AT[family], family),
        _masked(subnet.netmask.packed),
        _compare(subnet.network_address.packed),
    ]


def was_redirected() -> list[Expression]:
    """Whether a map changed the destination of the packet's connection."""
    status = ("ct", [("NFTA_CT_DREG", _REGISTER), ("NFTA_CT_KEY", 2)])
    return [status, _masked(struct.pack("=I", _DNAT_STATUS)), _compare(bytes(4), equal=False)]


def masquerade() -> list[Expression]:
    """Gives the packet's connection the address of the link that it leaves by."""
    return [("masq", [])]


def redirect_by(name: str, family: int) -> list[Expression]:
    """Sends a packet of the family to where the map says, if it says so."""
    words = _ADDRESS_BYTES[family] // 4
    port = [
        ("NFTA_PAYLOAD_DREG", _REGISTER + words + 1),
        ("NFTA_PAYLOAD_BASE", 2),
        ("NFTA_PAYLOAD_OFFSET", 2),
        ("NFTA_PAYLOAD_LEN", 2),
    ]
    lookup = [("NFTA_LOOKUP_SET", name), ("NFTA_LOOKUP_SREG", _REGISTER), ("NFTA_LOOKUP_DREG", _REGISTER)]
    nat = [
        ("NFTA_NAT_TYPE", 1),
        ("NFTA_NAT_FAMILY", family),
        ("NFTA_NAT_REG_ADDR_MIN", _REGISTER),
        ("NFTA_NAT_REG_PROTO_MIN", _REGISTER + words),
    ]
    return [
        *_is_of(family),
        _address(_DESTINATION_AT[family], family),
        _meta(16, _REGISTER + words),  # NFT_META_L4PROTO
        ("payload", port),
        ("lookup", lookup),
        ("nat", nat),
    ]


def _is_of(family: int) -> list[Expression]:
    return [_meta(15, _REGISTER), _compare(bytes([family]))]  # NFT_META_NFPROTO


def _address(offset: int, family: int) -> Expression:
    place = [("NFTA_PAYLOAD_BASE", 1), ("NFTA_PAYLOAD_OFFSET", offset), ("NFTA_PAYLOAD_LEN", _ADDRESS_BYTES[family])]
    return "payload", [("NFTA_PAYLOAD_DREG", _REGISTER), *place]


def _masked(mask: bytes) -> Expression:
    registers = [("NFTA_BITWISE_SREG", _REGISTER), ("NFTA_BITWISE_DREG", _REGISTER), ("NFTA_BITWISE_LEN", len(mask))]
    return "bitwise", [*registers, ("NFTA_BITWISE_MASK", _data(mask)), ("NFTA_BITWISE_XOR", _data(bytes(len(mask))))]


def _meta(key: int, register: int) -> Expression:
    return "meta", [("NFTA_META_DREG", register), ("NFTA_META_KEY", key)]


def _compare(value: bytes, *, equal: bool = True) -> Expression:
    return "cmp", [("NFTA_CMP_SREG", _REGISTER), ("NFTA_CMP_OP", 0 if equal else 1), ("NFTA_CMP_DATA", _data(value))]
