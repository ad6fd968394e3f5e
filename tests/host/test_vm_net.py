"""A guest in an allocation's network namespace has the address that a container would have there."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.oci_lab import OneImage, shell
from tests.host.vm_lab import MACHINES, backend, handle, machines
from zlayer_driver.errors import NetworkError
from zlayer_driver.model import Network

pytestmark = [pytest.mark.needs(*MACHINES, "ip", "tc"), pytest.mark.timeout(180)]
HERE, THERE = (f"zlvmtest-{os.getpid()}-{side}" for side in "ab")


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def netns() -> Iterator[Path]:
    """A namespace with eth0 10.77.0.2/24, whose gateway 10.77.0.1 is in another."""
    for name in (HERE, THERE):
        ip("netns", "add", name)
    try:
        ip("-n", HERE, "link", "add", "eth0", "type", "veth", "peer", "name", "peer0", "netns", THERE)
        ip("-n", HERE, "addr", "add", "10.77.0.2/24", "dev", "eth0")
        ip("-n", THERE, "addr", "add", "10.77.0.1/24", "dev", "peer0")
        for name, link in ((HERE, "eth0"), (THERE, "peer0"), (THERE, "lo")):
            ip("-n", name, "link", "set", link, "up")
        ip("-n", HERE, "route", "add", "default", "via", "10.77.0.1")
        ip("-n", THERE, "addr", "add", "192.0.2.1/32", "dev", "lo")
        yield Path("/run/netns", HERE)
    finally:
        for name in (HERE, THERE):
            ip("netns", "del", name)


def state(netns: Path) -> list[str]:
    """Links, addresses and queueing of the namespace."""
    found = [entry["ifname"] for entry in json.loads(ip("-n", netns.name, "-json", "link"))]
    qdiscs = subprocess.run(["tc", "-n", netns.name, "qdisc"], check=True, capture_output=True, text=True).stdout
    return [*found, *sorted(line for line in qdiscs.splitlines() if "ingress" in line)]


async def test_guest_takes_the_address_and_gives_it_back(root: Path, images: OneImage, tmp_path: Path, netns: Path) -> None:
    vms = backend(root, images, machines(tmp_path))
    before = state(netns)
    mac = json.loads(ip("-n", HERE, "-json", "link", "show", "eth0"))[0]["address"]
    spec = shell("one", "sleep 1000", network=Network(mode="path", netns_path=str(netns)))
    task = handle("one", await vms.start(spec))
    ping = ["ip", "netns", "exec", THERE, "busybox", "ping", "-c", "1", "-w", "20", "10.77.0.2"]
    done = await asyncio.to_thread(subprocess.run, ping, check=False, capture_output=True)
    assert done.returncode == 0, done.stdout
    script = "cat /sys/class/net/eth0/address; awk '$2 == \"00000000\" {print $3}' /proc/net/route"
    out = await vms.exec(task, ["sh", "-c", script], timeout_s=30)
    assert out.stdout.decode().split() == [mac, "01004D0A"]
    with pytest.raises(NetworkError, match="taken by another VM"):
        await vms.start(dataclasses.replace(spec, id="two"))
    assert (await asyncio.to_thread(subprocess.run, ping, check=False, capture_output=True)).returncode == 0
    await vms.destroy(task)
    assert state(netns) == before


async def test_namespace_without_an_address_is_refused(root: Path, images: OneImage, tmp_path: Path, netns: Path) -> None:
    ip("-n", HERE, "addr", "flush", "dev", "eth0")
    before = state(netns)
    with pytest.raises(NetworkError, match="no link"):
        await backend(root, images, machines(tmp_path)).start(shell("one", "true", network=Network(mode="path", netns_path=str(netns))))
    assert state(netns) == before
