"""The VM backend keeps the contract with real QEMU guests, on the real image store and a real registry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest

from tests.contract.test_oci import BASE, OciSubject, StoreCases, WatchCases, busybox, pulled
from tests.doubles.images import Built
from tests.host.oci_lab import remains
from tests.host.vm_lab import MACHINES, clear, machines
from zlayer_driver.backends.vm import VmBackend
from zlayer_driver.backends.vm_node import Machines
from zlayer_driver.contract import Backend
from zlayer_driver.image.store import ImageStore
from zlayer_driver.testing import suite
from zlayer_driver.testing.cases import Evidence
from zlayer_driver.testing.subject import Subject

pytestmark = [pytest.mark.needs(*MACHINES, "docker-registry"), pytest.mark.timeout(180)]

__all__ = ["busybox", "pulled"]  # fixtures of the OCI backend's suite: the images are the same


class VmSubject(OciSubject):
    def __init__(self, root: Path, store: ImageStore, pulled: str, found: Machines) -> None:
        self._machines = found
        super().__init__(root, store, pulled)

    def successor(self) -> Backend:
        return VmBackend(root=self._root / "state", store=self._store, machines=self._machines)

    async def remains(self) -> Collection[str]:
        return remains(self._root)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Machines:
    return machines(tmp_path_factory.mktemp("machines"))


class TestVm(
    suite.Verbs,
    suite.SignalCases,
    suite.ExecCases,
    suite.StreamExecCases,
    suite.ControlCases,
    suite.UsageCases,
    suite.GuestOverlayCases,
    suite.SweepCases,
    suite.PullCases,
    suite.ImageCases,
    StoreCases,
    WatchCases,
):
    backend = VmBackend
    evidence = Evidence.REAL

    @pytest.fixture
    async def subject(self, tmp_path: Path, busybox: Built, pulled: str, found: Machines) -> AsyncIterator[Subject]:
        store = ImageStore(tmp_path / "images")
        await store.import_archive(f"oci:{busybox.layout(tmp_path / 'layout')}:latest", BASE)
        yield VmSubject(tmp_path, store, pulled, found)
        await store.close()
        assert await clear(tmp_path) == []
