"""What a node is in the overlay: config, plan and key files, on paper."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from zlayer_driver.config import OverlayBlock, PluginConfig, Transport, parse
from zlayer_driver.errors import ConfigError, NetworkError
from zlayer_driver.overlay import keys
from zlayer_driver.overlay.plan import Peer, Plan, Subnets, container_mac

BLOCK: dict[str, Any] = {
    "name": "a",
    "network": "10.88.0.0/16",
    "network6": "fd88::/48",
    "subnet": "10.88.1.0/24",
    "subnet6": "fd88:0:0:1::/64",
    "endpoint": "192.0.2.1",
    "peer": [{"name": "b", "endpoint": "192.0.2.2", "subnet": "10.88.2.0/24", "subnet6": "fd88:0:0:2::/64"}],
}


def plan(**changes: Any) -> Plan:
    return Plan.of(parse(OverlayBlock, BLOCK | changes, what="overlay"))


def test_a_block_becomes_a_plan_and_back() -> None:
    made = plan()
    assert made.transport is Transport.VXLAN
    assert (made.port, made.peers[0].port) == (4789, 4789)
    assert made.subnets.own() == (ip_address("10.88.1.1"), ip_address("fd88:0:0:1::1"))
    assert Plan.loads(made.dumps()) == made


def test_the_plugin_block_takes_it_as_nomad_sends_it() -> None:
    config = parse(PluginConfig, {"overlay": BLOCK | {"vni": "7", "mtu": 1400.0}}, what="plugin")
    assert config.overlay
    assert (config.overlay.vni, config.overlay.mtu) == (7, 1400)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"subnet": "10.89.1.0/24"}, "not within the overlay's network"),
        ({"subnet": "10.88.2.0/25"}, "overlap"),
        ({"subnet": "10.88.1.1/24"}, "host bits set"),
        ({"subnet": "fd88::/64"}, "IPv4 subnet"),
        ({"subnet": "10.88.1.0/31"}, "four addresses"),
        ({"subnet6": None}, "belong together"),
        ({"endpoint": "node-a"}, "an IP address is needed"),
        ({"endpoint": "2001:db8::1"}, "endpoints are all"),
        ({"bridge": "a-very-long-name"}, "bridge"),
        ({"bridge": "x; rm"}, "bridge"),
        ({"transport": "wireguard"}, "public_key"),
        ({"vni": 1 << 24}, "vni"),
        ({"peer": [{"name": "b"}]}, "endpoint"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        plan(**changes)


@pytest.mark.parametrize(
    ("changes", "mtu"),
    [
        ({}, 1450),
        ({"endpoint": "2001:db8::1", "peer": []}, 1430),
        ({"transport": "wireguard", "peer": []}, 1440),
        ({"transport": "wireguard", "peer": [], "endpoint": "2001:db8::1"}, 1420),
        ({"mtu": 1300}, 1300),
    ],
)
def test_the_mtu_is_the_underlays_less_the_transports_headers(changes: dict[str, Any], mtu: int) -> None:
    assert plan(**changes).inner_mtu(1500) == mtu


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, ""),
        ({"endpoint": ip_address("2001:db8::2")}, "endpoint 2001:db8::2 is of another family"),
        ({"public_key": ""}, "no WireGuard key"),
        ({"public_key": "A" * 40}, "no WireGuard key"),
        ({"subnets": Subnets.of("10.88.1.0/24", None)}, "10.88.1.0/24 is this node's"),
        ({"subnets": Subnets.of("10.0.0.0/8", None)}, "10.0.0.0/8 is this node's"),
        ({"subnets": Subnets.of("10.99.2.0/24", None)}, "10.99.2.0/24 is this node's, or not of the overlay 10.88.0.0/16"),
        ({"subnets": Subnets.of("10.88.2.0/24", "fd99::/64")}, "fd99::/64 is this node's, or not of the overlay fd88::/48"),
    ],
)
def test_a_peer_that_is_set_otherwise_is_told(changes: dict[str, Any], fault: str) -> None:
    peer = Peer("b", ip_address("192.0.2.2"), 51820, Subnets.of("10.88.2.0/24", "fd88:0:0:2::/64"), "A" * 43 + "=")
    told = plan(transport="wireguard", peer=[]).fault_of(replace(peer, **changes))
    assert fault in told
    assert bool(told) == bool(fault)


def test_an_underlay_that_is_too_small_is_refused() -> None:
    with pytest.raises(NetworkError, match="too small"):
        plan().inner_mtu(1300)


def test_link_names_fit_the_kernel() -> None:
    longest = plan(bridge="abcdefgh", network="10.0.0.0/8", subnet="10.88.0.0/15", peer=[])
    assert max(len(longest.device), len(longest.link(longest.subnets.numbers()[-1]))) <= 15


def test_macs_are_local_unicast_and_each_address_has_its_own() -> None:
    subnets = Subnets.of("10.88.0.0/20", None)
    macs = {container_mac(subnets.at(number)[0]) for number in subnets.numbers()}
    assert len(macs) == len(subnets.numbers())
    assert all(mac[0] & 3 == 2 for mac in macs)


def test_a_key_is_made_once_for_root_only_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "node"
    pair = keys.load(path)
    assert keys.load(path) == pair
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert pair.private not in repr(pair)
    path.chmod(0o640)
    with pytest.raises(NetworkError, match="others may read"):
        keys.load(path)


@pytest.mark.parametrize("key", ["", "short", "é" * 44, "A" * 43, "A" * 60])
def test_what_is_no_key_is_refused_without_being_shown(tmp_path: Path, key: str) -> None:
    path = tmp_path / "node"
    path.write_text(key)
    path.chmod(0o600)
    with pytest.raises(NetworkError, match=f"what is in {path} is no key") as caught:
        keys.load(path)
    assert not key or key not in str(caught.value)


def test_nothing_of_netlink_is_imported_before_an_attach() -> None:
    text = """
        import sys
        import zlayer_driver.cli.main, zlayer_driver.driver, zlayer_driver.overlay.networks, zlayer_driver.overlay.proxy
        sys.exit(any(name.split(".")[0] in ("pyroute2", "cryptography") for name in sys.modules))
    """
    code = "\n".join(line.strip() for line in text.splitlines())
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
