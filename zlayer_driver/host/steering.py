"""All traffic of a network namespace to a tap device and back, so that a guest has the address that a container would have had there.

The namespace's own link keeps its address and its MAC, and the kernel sees none of its packets: each goes on to the tap as it comes in,
and each from the tap out again. Taking that away leaves the namespace as it was. By ``ip`` and ``tc``, since a guest takes seconds to boot.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zlayer_driver.errors import NetworkError
from zlayer_driver.host.processes import capture

_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Route:
    """``target`` is a network in CIDR notation; ``gateway`` is empty for one on the link."""

    target: str
    gateway: str


@dataclass(frozen=True, slots=True)
class Link:
    """What a namespace's link has, for the guest to have in its place."""

    name: str
    mac: str
    mtu: int
    address: str
    prefix_length: int
    routes: tuple[Route, ...]


async def find(netns: str) -> Link:
    """The namespace's first link with an IPv4 address; `NetworkError` without one, or if its traffic goes elsewhere already."""
    for entry in json.loads(await _run(netns, "ip", "-json", "-4", "addr", "show", "up")):
        if entry["ifname"] == "lo" or not entry["addr_info"]:
            continue
        name, address = entry["ifname"], entry["addr_info"][0]
        if await _run(netns, *_filters(name)):
            raise NetworkError(
                f"link {name} of network namespace {netns!r} is taken by another VM", hint="run at most one VM in an allocation's network"
            )
        mac = json.loads(await _run(netns, "ip", "-json", "link", "show", "dev", name))[0]["address"]
        routes = json.loads(await _run(netns, "ip", "-json", "-4", "route", "show", "dev", name))
        kept = tuple(_route(route) for route in routes if route.get("protocol") != "kernel")
        return Link(name, mac, int(entry["mtu"]), address["local"], int(address["prefixlen"]), kept)
    raise NetworkError(f"network namespace {netns!r} has no link with an IPv4 address", hint="attach the namespace before a VM joins it")


async def steer(netns: str, link: Link, tap: str, scratch: Path) -> None:
    """Steers all traffic of ``link`` to a new tap. ``scratch`` is for a file of commands. What it did half, `release` undoes."""
    redirect = "protocol all u32 match u8 0 0 action mirred egress redirect dev"
    commands = [f"qdisc add dev {dev} ingress" for dev in (link.name, tap)]
    commands += [f"filter add dev {here} parent ffff: {redirect} {there}" for here, there in ((tap, link.name), (link.name, tap))]
    await asyncio.to_thread(scratch.write_text, "\n".join([*commands, ""]))
    await _run(netns, "ip", "tuntap", "add", "dev", tap, "mode", "tap")
    await _run(netns, "ip", "link", "set", "dev", tap, "mtu", str(link.mtu), "up")
    await _run(netns, "tc", "-batch", str(scratch))


async def release(netns: str, link: Link, tap: str) -> None:
    """Takes the tap, and the steering to it alone, away; what is not there, or a namespace that is gone, is fine."""
    steered = await capture([*_inside(netns), *_filters(link.name)], timeout_s=_TIMEOUT_S)
    if f"device {tap})".encode() in steered.stdout:
        await capture([*_inside(netns), "tc", "qdisc", "del", "dev", link.name, "ingress"], timeout_s=_TIMEOUT_S)
    await capture([*_inside(netns), "ip", "link", "del", "dev", tap], timeout_s=_TIMEOUT_S)


def entering(netns: str) -> list[str]:
    """The beginning of a command line that runs the rest in the namespace."""
    return [*_inside(netns), "--"]


def _inside(netns: str) -> list[str]:
    return ["nsenter", f"--net={netns}"]


def _filters(name: str) -> tuple[str, ...]:
    return ("tc", "filter", "show", "dev", name, "parent", "ffff:")


def _route(route: dict[str, Any]) -> Route:
    target = "0.0.0.0/0" if route["dst"] == "default" else route["dst"]
    return Route(target if "/" in target else f"{target}/32", route.get("gateway", ""))


async def _run(netns: str, *argv: str) -> bytes:
    done = await capture([*_inside(netns), *argv], timeout_s=_TIMEOUT_S)
    if done.status != 0:
        reason = done.stderr.decode("utf-8", "replace").strip()
        raise NetworkError(f"network namespace {netns!r} cannot be prepared for a VM: {' '.join(argv)}: {reason}")
    return done.stdout
