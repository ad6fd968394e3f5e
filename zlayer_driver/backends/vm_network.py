"""The network of a guest: that of the task's namespace, by a tap that takes the place of its link, or QEMU's own."""

from __future__ import annotations

import json
from dataclasses import asdict

from zlayer_driver.backends import vm_guest
from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.backends.supervised.making import Making
from zlayer_driver.host import steering
from zlayer_driver.host.steering import Link, Route


async def join(making: Making) -> None:
    """The record comes first, so that whatever is begun is found again."""
    network, directory = making.task.network, making.bundle.dir
    if network.mode == "path":
        link = await steering.find(network.netns_path)
        (directory / "link.json").write_text(json.dumps({"netns": network.netns_path, "link": asdict(link)}))
        await steering.steer(network.netns_path, link, _tap(making.bundle), directory / "steering")


async def leave(bundle: Bundle) -> None:
    if found := _joined(bundle):
        await steering.release(*found, _tap(bundle))


def _tap(bundle: Bundle) -> str:
    """A name of its own, so that nobody takes another's away; the most that a link's name may have."""
    return f"zl-{bundle.id[-12:]}"


def _joined(bundle: Bundle) -> tuple[str, Link] | None:
    """The network namespace, and its link."""
    try:
        found = json.loads((bundle.dir / "link.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    link = found["link"]
    return found["netns"], Link(**link | {"routes": tuple(Route(**route) for route in link["routes"])})


def link_of(making: Making) -> Link | None:
    """For the guest's eth0."""
    if making.task.network.mode == "host":
        return vm_guest.USER_NET
    found = _joined(making.bundle)
    return found[1] if found else None


def backend(making: Making) -> str:
    """QEMU's for the guest's eth0."""
    return "user" if making.task.network.mode == "host" else f"tap,ifname={_tap(making.bundle)},script=no,downscript=no"
