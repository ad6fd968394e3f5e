"""When the driver looks for orphans: only for an agent that listens, and only after its grace."""

from __future__ import annotations

import asyncio

import pytest

from zlayer_driver.config import PluginConfig
from zlayer_driver.driver import Driver
from zlayer_driver.model import Fingerprint, Health


class OneNode:
    """Nothing but a note of each sweep; the first for orphans ends the driver."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.sweeps: list[float | None] = []
        self.probes = 0

    async def sweep(self, *, orphans_after_s: float | None = None) -> None:
        self.sweeps.append(orphans_after_s)
        self.driver._closing.set()

    async def pin_images(self) -> None:
        """Of no matter here."""

    async def fingerprint(self) -> Fingerprint:
        self.probes += 1
        if self.probes == 3:
            self.driver._closing.set()
        return Fingerprint(Health.HEALTHY)


@pytest.mark.parametrize(("grace_s", "sweeps"), [(1e-9, [1e-9]), (3600.0, []), (0.0, [])])
async def test_an_agent_that_listens_has_a_grace(monkeypatch: pytest.MonkeyPatch, grace_s: float, sweeps: list[float]) -> None:
    monkeypatch.setattr("zlayer_driver.driver._PROBE_EVERY_S", 0.001)
    driver = Driver()
    driver.config = PluginConfig(orphan_grace=grace_s)
    node = OneNode(driver)
    monkeypatch.setattr(Driver, "node", property(lambda _: node))
    async with asyncio.timeout(30):
        told = [fingerprint async for fingerprint in driver.fingerprints()]
    assert (len(told), node.sweeps) == (1, sweeps)
