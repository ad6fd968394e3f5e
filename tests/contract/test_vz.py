"""The vz backend keeps the contract with a double of tart, whose machines run their commands on this system."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from tests.contract.tool_subject import ToolSubject, home
from zlayer_driver import contract
from zlayer_driver.backends.vz import VzBackend
from zlayer_driver.contract import Backend
from zlayer_driver.errors import NotFound
from zlayer_driver.model import PullPolicy, TaskSpec
from zlayer_driver.readings import OverlayKind
from zlayer_driver.testing import suite
from zlayer_driver.testing.cases import AbilityCases, Evidence
from zlayer_driver.testing.subject import Subject

__all__ = ["home"]

pytestmark = pytest.mark.needs("linux", "root")


class VzSubject(ToolSubject):
    base = "example.org/macos:v1"
    image = "example.org/other:v1"
    missing_image = "example.org/nothing:v1"

    def successor(self) -> Backend:
        return VzBackend(root=self.root / "state")

    def machines(self) -> Collection[str]:
        return [path.name for path in self.home.glob("tart-*")]

    def cannot_start(self, task_id: str) -> TaskSpec:
        return self.spec(task_id, "exit 0", image=self.missing_image)


@pytest.fixture
def subject(tmp_path: Path, home: Path) -> VzSubject:
    for image in (VzSubject.base, VzSubject.image):
        (home / "images" / image.replace("/", "_")).write_text("{}")
    return VzSubject(tmp_path)


class GuestCases(AbilityCases):
    covers = frozenset({contract.HasOverlayKind, contract.HasState, contract.HasAddress, contract.CanRemoveImage})

    async def test_guest_has_an_address(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.HasOverlayKind)
        assert isinstance(subject.backend, contract.HasAddress)
        handle = await subject.start(subject.runs("task"))
        assert await subject.backend.address(handle) == "192.168.64.7"
        assert subject.backend.overlay_kind() is OverlayKind.GUEST_MANAGED
        await subject.backend.destroy(handle)

    async def test_removed_image_is_gone(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanPull)
        assert isinstance(subject.backend, contract.CanRemoveImage)
        await subject.backend.pull(subject.image, policy=PullPolicy.ALWAYS, auth=None)
        await subject.backend.remove_image(subject.image, force=False)
        with pytest.raises(NotFound):
            await subject.backend.remove_image(subject.image, force=False)


class TestVz(suite.Verbs, suite.SignalCases, suite.ExecCases, suite.StreamExecCases, suite.SweepCases, suite.PullCases, GuestCases):
    backend = VzBackend
    evidence = Evidence.DOUBLE
