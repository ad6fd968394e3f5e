"""Hosts for the tests of the overlay: network namespaces that a test makes, joined by an underlay of its own. Nothing touches the node's."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

from zlayer_driver.config import Transport
from zlayer_driver.host import netns
from zlayer_driver.host.icmp import echo
from zlayer_driver.host.wireguard import Userspace
from zlayer_driver.overlay import keys
from zlayer_driver.overlay.overlay import KEY_FILE, STATE, Overlay
from zlayer_driver.overlay.plan import PORTS, Address, Peer, Plan, Subnets

_serials = itertools.count(os.getpid() * 64)
NETWORK = Subnets.of("10.88.0.0/16", "fd88::/48")


def run(argv: Sequence[str], *, namespace: Path | None = None, check: bool = True) -> str:
    """What a program writes, run in a namespace."""
    entered = ["nsenter", f"--net={namespace}", *argv] if namespace else argv
    done = subprocess.run(entered, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{argv}: {done.stderr or done.stdout}"
    return done.stdout


def ping(namespace: Path, address: object, *, count: int = 1, wait_s: int = 2) -> bool:
    """Whether every echo came back."""
    out = run(["busybox", "ping", "-c", str(count), "-W", str(wait_s), str(address)], namespace=namespace, check=False)
    return " 0% packet loss" in out


@asynccontextmanager
async def flowing(place: Path, addresses: Sequence[Address]) -> AsyncIterator[None]:
    """Echoes go from a container to the addresses all the time, until five rounds after the context; none may be lost."""
    ended = threading.Event()

    def flow() -> list[object]:
        lost: list[object] = []
        left = 5
        while left:
            left -= ended.wait(0.01)
            lost += [address for address in addresses if echo(address, timeout_s=2) is None]
        return lost

    worker = netns.Worker(str(place))
    stream = asyncio.ensure_future(worker.run(flow))
    try:
        yield
    finally:
        ended.set()
        lost = await stream
        worker.close()
    assert lost == []


@dataclass
class Host:
    """One node: its namespace, its overlay, and the namespaces of its containers."""

    number: int
    root: Path
    transport: Transport
    serial: int
    underlay: int = 4  # the version of the addresses at which nodes reach each other
    overlays: list[Overlay] = field(default_factory=list)

    @property
    def namespace(self) -> Path:
        return self.root / f"host{self.number}"

    @property
    def state_dir(self) -> Path:
        return self.root / f"state{self.number}" / STATE

    @property
    def endpoint(self) -> str:
        return f"10.199.0.{self.number}" if self.underlay == 4 else f"fd99::{self.number}"

    def plan(self, **changes: object) -> Plan:
        plan = Plan(
            name=f"n{self.number}",
            network=NETWORK,
            subnets=Subnets.of(f"10.88.{self.number}.0/24", f"fd88:0:0:{self.number}::/64"),
            endpoint=ip_address(self.endpoint),
            transport=self.transport,
            port=PORTS[self.transport],
            vni=42,
            bridge=f"z{self.serial % 65536:x}{self.number}",
        )
        return replace(plan, **changes)  # type: ignore[arg-type]  # the fields' own types are checked where they are used

    @property
    def public_key(self) -> str:
        return keys.load(self.state_dir / KEY_FILE).public if self.transport is Transport.WIREGUARD else ""

    def peer(self) -> Peer:
        return self.plan().as_peer(self.public_key)

    def overlay(self, **changes: object) -> Overlay:
        """A new process's view of the node; the lab closes it."""
        overlay = Overlay(self.plan(**changes), self.state_dir, netns_path=str(self.namespace))
        self.overlays.append(overlay)
        return overlay

    def container(self, name: str) -> Path:
        """A new namespace for a container."""
        path = self.root / f"c{self.number}-{name}"
        netns.make(path)
        return path

    def links(self) -> list[str]:
        """The host ends of containers."""
        lines = run(["ip", "-br", "link"], namespace=self.namespace).splitlines()
        return [line.split("@")[0] for line in lines if line.startswith(self.plan().prefix)]

    async def close(self) -> None:
        for overlay in self.overlays:
            await overlay.close()
        self.overlays.clear()

    def crash(self) -> None:
        """The node is gone, with all that it had."""
        Userspace(self.plan(transport=Transport.WIREGUARD).device).remove()  # a test may have changed the transport
        for path in self.root.glob(f"c{self.number}-*"):
            netns.remove(path)
        if self.namespace.exists():
            netns.remove(self.namespace)


class Lab:
    """A switch, and hosts on it."""

    def __init__(self, root: Path, transport: Transport = Transport.VXLAN, underlay: int = 4) -> None:
        self.root = root
        self.transport = transport
        self.underlay = underlay
        self.serial = next(_serials)  # WireGuard's sockets are by link name, whatever the namespace
        self.switch = root / "switch"
        self.hosts: list[Host] = []
        netns.make(self.switch)
        run(["ip", "link", "add", "sw0", "type", "bridge"], namespace=self.switch)
        run(["ip", "link", "set", "sw0", "up"], namespace=self.switch)

    def host(self, number: int) -> Host:
        host = Host(number, self.root, self.transport, self.serial, self.underlay)
        self.hosts.append(host)
        self.plug(host)
        return host

    def plug(self, host: Host) -> None:
        """Makes the host's namespace, with its underlay link."""
        netns.make(host.namespace)
        port = f"port{host.number}"
        run(["ip", "link", "add", port, "type", "veth", "peer", "name", "un0", "netns", str(host.namespace)], namespace=self.switch)
        run(["ip", "link", "set", port, "master", "sw0", "up"], namespace=self.switch)
        length, probing = ("24", []) if host.underlay == 4 else ("64", ["nodad"])
        run(["ip", "addr", "add", f"{host.endpoint}/{length}", "dev", "un0", *probing], namespace=host.namespace)
        run(["sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"], namespace=host.namespace)
        for link in ("lo", "un0"):
            run(["ip", "link", "set", link, "up"], namespace=host.namespace)

    def unplug(self, host: Host) -> None:
        run(["ip", "link", "del", f"port{host.number}"], namespace=self.switch, check=False)  # the kernel may have been quicker

    async def close(self) -> None:
        for host in self.hosts:
            await host.close()
            host.crash()
        netns.remove(self.switch)


@asynccontextmanager
async def lab(root: Path, transport: Transport = Transport.VXLAN, underlay: int = 4) -> AsyncIterator[Lab]:
    made = Lab(root, transport, underlay)
    try:
        yield made
    finally:
        await made.close()
