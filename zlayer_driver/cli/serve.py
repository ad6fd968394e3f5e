"""Serving Nomad: the driver behind the go-plugin server."""

from __future__ import annotations

from zlayer_driver.driver import Driver
from zlayer_driver.wire import goplugin


def serve() -> None:
    """Returns when Nomad has asked the plugin to go."""
    goplugin.main(Driver)
