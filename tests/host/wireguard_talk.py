"""What a kernel that has WireGuard is asked, and must then say. Runs where such a kernel is; prints nothing, and ends with 0, if all is as it should be."""

from __future__ import annotations

import base64

from zlayer_driver.host.wireguard import DeviceState, PeerChange, PeerState, endpoint_text
from zlayer_driver.host.wireguard_kernel import Kernel

_PORT = 51999


def _key(number: int) -> str:
    return base64.b64encode(number.to_bytes(32, "little")).decode()


def _peers() -> list[PeerChange]:
    """More peers, and one with more networks, than a message of the kernel holds."""
    found = [
        PeerChange(_key(number), (f"10.{number}.0.0/16", f"fd00:{number:x}::/32"), (f"2001:db8::{number:x}", number), keepalive_s=25)
        for number in range(1, 120)
    ]
    many = tuple(f"172.16.{number}.0/24" for number in range(256))
    return [*found, PeerChange(_key(500), many, ("192.0.2.5", 4000)), PeerChange(_key(501), ("192.0.2.7/32",))]


def _told(peer: PeerChange) -> PeerState:
    return PeerState(endpoint_text(*peer.endpoint) if peer.endpoint else "", frozenset(peer.allowed))


def _must(found: object, wanted: object) -> None:
    if found != wanted:
        raise SystemExit(f"{found} is not {wanted}")


def main() -> None:
    device, peers = Kernel("wgtalk0"), _peers()
    _must([device.ensure(), device.ensure()], [True, True])
    _must(device.state(), DeviceState(0, peers={}))
    device.configure(peers, private_key=_key(1000), listen_port=_PORT)
    _must(device.state(), DeviceState(_PORT, peers={peer.public_key: _told(peer) for peer in peers}))
    changed = PeerChange(_key(500), ("10.200.0.0/16",), ("192.0.2.6", 4001))
    device.configure([PeerChange(peer.public_key, remove=True) for peer in peers[:100]] + [changed])
    left = {peer.public_key: _told(peer) for peer in [*peers[100:], changed]}
    _must(device.state(), DeviceState(_PORT, peers=left))
    device.remove()
    device.remove()


if __name__ == "__main__":
    main()
