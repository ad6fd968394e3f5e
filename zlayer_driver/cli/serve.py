"""Serving Nomad: the driver behind the go-plugin server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zlayer_driver.wire import goplugin

if TYPE_CHECKING:
    from zlayer_driver.driver import Driver


def serve() -> int:
    """The exit status, when Nomad has asked the plugin to go."""
    return goplugin.main(_driver)


def _driver() -> Driver:
    from zlayer_driver.driver import Driver  # noqa: PLC0415  # made after the handshake line, in the time that the host needs to dial

    return Driver()
