"""Attach kind ``guest_managed``: a guest gets an identity and its peers, and brings up a WireGuard interface of its own.

The node is the guest's only peer: it hands the overlay's packets on in both directions, so that a guest learns nothing of other nodes
and need not be told when they change.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from zlayer_driver.config import Transport
from zlayer_driver.errors import InvalidSpec, Unsupported
from zlayer_driver.host.wireguard import endpoint_text
from zlayer_driver.overlay import keys
from zlayer_driver.overlay.host_netns import Attachment
from zlayer_driver.overlay.overlay import Core, Overlay
from zlayer_driver.overlay.plan import Guest
from zlayer_driver.overlay.tunnel import KEEPALIVE_S
from zlayer_driver.readings import GuestOverlay

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}")

Push = Callable[[GuestOverlay], Awaitable[None]]


class GuestManaged:
    """The guests of one node. Their keys lie in the overlay's state directory, one file an owner."""

    def __init__(self, overlay: Overlay) -> None:
        if overlay.plan.transport is not Transport.WIREGUARD:
            raise Unsupported("guests join the overlay by WireGuard", hint="set the overlay's transport to wireguard")
        self._overlay = overlay

    async def attach(self, owner: str, push: Push) -> Attachment:
        """Leases an address, makes the guest a peer of the node, and pushes its config, such as by `TakesOverlayConfig.push_overlay`.

        Again, it pushes the same. On failure nothing is left.
        """
        path = self._key_path(owner)
        attached = await self._overlay.lease(owner)
        try:
            await push(await self._overlay.call(_admit, attached, path))
        except BaseException:
            await self.detach(owner)
            raise
        return attached

    async def detach(self, owner: str) -> None:
        """Takes the guest off the node's peers, and frees its address and key. Idempotent."""
        if attached := await self._overlay.describe(owner):
            await self._overlay.call(_dismiss, attached)
        await self._overlay.detach(owner)
        self._key_path(owner).unlink(missing_ok=True)

    async def describe(self, owner: str) -> Attachment | None:
        return await self._overlay.describe(owner)

    def _key_path(self, owner: str) -> Path:
        if not _OWNER.fullmatch(owner):
            raise InvalidSpec(f"{owner!r} is no owner of an overlay address")
        return self._overlay.state_dir / "guests" / owner


def _admit(core: Core, attached: Attachment, path: Path) -> GuestOverlay:
    pair = keys.load(path)
    core.fabric.set_guest(Guest(attached.addresses, pair.public))
    node = core.plan
    address, *others = map(str, attached.addresses)
    return GuestOverlay(
        address=address,
        address6="".join(others),
        private_key=pair.private,
        peers=(
            {
                "public_key": core.public_key,
                "endpoint": endpoint_text(str(node.endpoint), node.port),
                "allowed_ips": ",".join(map(str, node.network.each())),
                "persistent_keepalive_s": str(KEEPALIVE_S),
                "mtu": str(core.fabric.mtu),
            },
        ),
    )


def _dismiss(core: Core, attached: Attachment) -> None:
    core.fabric.drop_guest(attached.addresses)
