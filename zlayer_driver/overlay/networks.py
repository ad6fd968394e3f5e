"""The networks of allocations, in the driver's terms: a namespace that a file keeps alive, attached to the overlay.

Nomad asks for one before an allocation's tasks start, again after the agent's restart, and ends it after the last task.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from zlayer_driver.errors import InvalidSpec, NotFound
from zlayer_driver.host import netns
from zlayer_driver.model import NetworkSpec
from zlayer_driver.overlay.host_netns import Attachment
from zlayer_driver.overlay.overlay import Core, Overlay

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

    def path(self, alloc_id: str) -> Path:
        if not _ID.fullmatch(alloc_id):
            raise InvalidSpec(f"{alloc_id!r} is no allocation id")
        return self._overlay.state_dir / "netns" / alloc_id


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
