"""One echo request to an address and its answer: RFC 792 and RFC 4443. Needs CAP_NET_RAW."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence
_REQUEST, _REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
_PAYLOAD = b"zlayer-driver overlay check"


def echo(address: IPv4Address | IPv6Address, *, source: IPv4Address | IPv6Address | None = None, timeout_s: float) -> float | None:
    """Seconds until the answer came, ``None`` if none did; from the calling thread's network namespace. `OSError` if it cannot be sent."""
    family, protocol = (socket.AF_INET, socket.IPPROTO_ICMP) if address.version == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    identifier = int.from_bytes(os.urandom(2), "big")
    with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
        if source:
            sock.bind((str(source), 0))
        began = time.monotonic()
        sock.sendto(_request(address.version, identifier), (str(address), 0))
        with suppress(TimeoutError):
            while (left := began + timeout_s - time.monotonic()) > 0:
                sock.settimeout(left)
                if _answers(sock.recv(2048), address.version, identifier):
                    return time.monotonic() - began
    return None


def _request(version: int, identifier: int) -> bytes:
    """In IPv6 the kernel fills the checksum in."""
    draft = _HEADER.pack(_REQUEST[version], 0, 0, identifier, 1) + _PAYLOAD
    if version == 6:
        return draft
    return _HEADER.pack(_REQUEST[version], 0, _checksum(draft), identifier, 1) + _PAYLOAD


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _answers(packet: bytes, version: int, identifier: int) -> bool:
    """A raw IPv4 socket gives the IP header too."""
    start = (packet[0] & 0x0F) * 4 if version == 4 and packet else 0
    if len(packet) < start + _HEADER.size:
        return False
    kind, _, _, found, _ = _HEADER.unpack_from(packet, start)
    return bool(kind == _REPLY[version] and found == identifier)
