"""The kernel's WireGuard messages, by pyroute2's own reading of them. The answers have the form that Linux 6.1 gives them.

A kernel that has WireGuard is not taken for granted; `tests.host.test_overlay_nodes` holds the same abilities to the device that a node has.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, Self

import pytest
from pyroute2.netlink.generic.wireguard import wgmsg

from zlayer_driver.host import netlink_messages as messages
from zlayer_driver.host import wireguard_kernel
from zlayer_driver.host.netlink import Batch
from zlayer_driver.host.wireguard import PeerChange, PeerState
from zlayer_driver.host.wireguard_kernel import Kernel

ONE, TWO, PRIVATE = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2, 3))
FAMILY = 30


class Told:
    """Stands in for a generic netlink socket: keeps what is sent, and answers a dump with what it was given."""

    def __init__(self) -> None:
        self.sent: list[Batch] = []
        self.answers: list[bytes] = []

    def __call__(self, _: int) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def send(self, batch: Batch) -> None:
        self.sent.append(batch)

    def dump(self, _: Batch) -> list[bytes]:
        return self.answers


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(wireguard_kernel, "Socket", told := Told())
    return told


def read(data: bytes) -> Iterator[Any]:
    """Each message of a batch, decoded."""
    while data:
        length = int.from_bytes(data[:4], "little")
        yield messages.decode(wgmsg, data[16:length])
        data = data[length:]


def test_key_and_port_come_before_the_peers_and_each_peer_is_set_alone(kernel: Told) -> None:
    peer = PeerChange(ONE, ("10.88.2.0/24", "fd88:0:0:2::/64"), ("2001:db8::2", 51820), keepalive_s=25)
    Kernel("wg0", FAMILY).configure([peer, PeerChange(TWO, remove=True)], private_key=PRIVATE, listen_port=51820)
    (batch,) = kernel.sent
    own, first, second = read(batch.data)
    assert len(batch.names) == 3
    assert PRIVATE not in "".join(batch.names)
    assert (own.get_attr("WGDEVICE_A_IFNAME"), own.get_attr("WGDEVICE_A_LISTEN_PORT")) == ("wg0", 51820)
    assert own.get_attr("WGDEVICE_A_PRIVATE_KEY") == PRIVATE.encode()
    (set_,), (removed,) = first.get_attr("WGDEVICE_A_PEERS"), second.get_attr("WGDEVICE_A_PEERS")
    at = set_.get_attr("WGPEER_A_ENDPOINT")
    assert (set_.get_attr("WGPEER_A_PUBLIC_KEY"), at["addr"], at["port"]) == (ONE.encode(), "2001:db8::2", 51820)
    assert (set_.get_attr("WGPEER_A_FLAGS"), set_.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL")) == (2, 25)
    assert [network["addr"] for network in set_.get_attr("WGPEER_A_ALLOWEDIPS")] == list(peer.allowed)
    assert (removed.get_attr("WGPEER_A_PUBLIC_KEY"), removed.get_attr("WGPEER_A_FLAGS")) == (TWO.encode(), 1)


def test_a_peer_that_is_told_in_several_messages_is_one(kernel: Told) -> None:
    def networks(*texts: str) -> tuple[str, Any]:
        changes = dict(wireguard_kernel._peer_attributes(PeerChange(ONE, texts)))
        return "WGPEER_A_ALLOWEDIPS", changes["WGPEER_A_ALLOWEDIPS"]

    endpoint = ("WGPEER_A_ENDPOINT", {"addr": "192.0.2.2", "port": 4000})
    met = ("WGPEER_A_LAST_HANDSHAKE_TIME", {"tv_sec": 1700000000, "tv_nsec": 5})
    for peers in (
        [[("WGPEER_A_PUBLIC_KEY", ONE), endpoint, met, networks("10.0.0.0/8")]],
        [[("WGPEER_A_PUBLIC_KEY", ONE), networks("fd00::/64", "192.0.2.7/32")], [("WGPEER_A_PUBLIC_KEY", TWO)]],
    ):
        attributes: list[tuple[str, Any]] = [("WGDEVICE_A_LISTEN_PORT", 51820)]
        attributes.append(("WGDEVICE_A_PEERS", [{"attrs": peer} for peer in peers]))
        kernel.answers.append(messages.encode(wgmsg, FAMILY, 0, "", {"cmd": 0}, attributes).data[16:])
    found = Kernel("wg0", FAMILY).state()
    assert found.listen_port == 51820
    one = PeerState("192.0.2.2:4000", frozenset({"10.0.0.0/8", "fd00::/64", "192.0.2.7/32"}), 1700000000)
    assert found.peers == {ONE: one, TWO: PeerState("", frozenset())}
