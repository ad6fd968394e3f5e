"""Serving Nomad: the driver behind the go-plugin server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zlayer_driver.wire import goplugin

if TYPE_CHECKING:
    from pathlib import Path

    from zlayer_driver.config import OverlayBlock
    from zlayer_driver.driver import Driver, Membership


def serve() -> int:
    """The exit status, when Nomad has asked the plugin to go."""
    return goplugin.main(_driver)


def _driver() -> Driver:
    from zlayer_driver.driver import Driver  # noqa: PLC0415  # made after the handshake line, in the time that the host needs to dial

    return Driver(_join)


def _join(block: OverlayBlock, state_dir: Path) -> Membership:
    from zlayer_driver.nomad.membership import Membership  # noqa: PLC0415  # only a node with an overlay pays for it

    return Membership(block, state_dir)
