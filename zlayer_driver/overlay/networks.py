"""The networks of allocations, in the driver's terms: a namespace that a file keeps alive, attached to the overlay.

Nomad asks for one before an allocation's tasks start, again after the agent's restart, and ends it after the last task.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from zlayer_driver.errors import InvalidSpec, NotFound
from zlayer_driver.host import netns
from zlayer_driver.model import GroupPort, NetworkSpec
from zlayer_driver.overlay.host_netns import Attachment
from zlayer_driver.overlay.overlay import STATE, Core, Overlay
from zlayer_driver.readings import PortMapping

_NAMESPACES = "netns"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class Networks:
    """One per node, over its overlay."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay

    async def create(self, alloc_id: str, hostname: str) -> NetworkSpec:
        """The allocation's network: the one it has, whole, else a new one. On failure nothing of a new one is left."""
        path = self.path(alloc_id)
        created, attached = await self._overlay.call(_create, alloc_id, path)
        return NetworkSpec(str(path), hostname, str(attached.addresses[0]), created)

    async def destroy(self, alloc_id: str) -> None:
        """Ends the network and frees its address. Idempotent."""
        if await self._overlay.call(_destroy, alloc_id, self.path(alloc_id)):
            self._overlay.reap_soon()

    async def find(self, alloc_id: str) -> Attachment:
        if attached := await self._overlay.describe(alloc_id):
            return attached
        raise NotFound(alloc_id, "it has no network here")

    async def publish(self, alloc_id: str, ports: Sequence[GroupPort]) -> None:
        """Makes these the node's ports that lead to the network, where the operator wants that; they end with it."""
        for port in ports:
            if not (_is_port(port.host_port) and _is_port(port.container_port) and _is_address(port.host_address)):
                raise InvalidSpec(f"port {port.label!r} cannot lead from {port.host_address}:{port.host_port} to {port.container_port}")
        mappings = (
            PortMapping(port.container_port, port.host_port, port.host_address, protocol) for port in ports for protocol in ("tcp", "udp")
        )
        await self._overlay.publish(alloc_id, tuple(mappings))

    def path(self, alloc_id: str) -> Path:
        if not _ID.fullmatch(alloc_id):
            raise InvalidSpec(f"{alloc_id!r} is no allocation id")
        return self._overlay.state_dir / _NAMESPACES / alloc_id


def _is_port(number: int) -> bool:
    return 0 < number < 1 << 16


def _is_address(text: str) -> bool:
    """None at all is the node's own."""
    try:
        return not text or bool(ip_address(text))
    except ValueError:
        return False


def directory(state_dir: Path) -> Path:
    """Where the namespaces of networks lie below the driver's state directory."""
    return state_dir / STATE / _NAMESPACES


def _create(core: Core, alloc_id: str, path: Path) -> tuple[bool, Attachment]:
    created = netns.make(path)
    try:
        return created, core.netns.attach(alloc_id, str(path))
    except BaseException:
        if created:
            with suppress(OSError):  # the failure that is told is the first one
                netns.remove(path)
        raise


def _destroy(core: Core, alloc_id: str, path: Path) -> bool:
    to_reap = core.netns.detach(alloc_id)
    netns.remove(path)
    return to_reap
