"""The vz_linux backend keeps the contract with a double of Apple's container, whose containers run on this system."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.contract.tool_subject import ToolSubject, home
from zlayer_driver import contract
from zlayer_driver.backends.vz_linux import VzLinuxBackend
from zlayer_driver.contract import Backend
from zlayer_driver.model import TaskSpec
from zlayer_driver.readings import OverlayKind
from zlayer_driver.testing import suite
from zlayer_driver.testing.cases import AbilityCases, Evidence
from zlayer_driver.testing.subject import Subject

__all__ = ["home"]

pytestmark = pytest.mark.needs("linux", "root")


class VzLinuxSubject(ToolSubject):
    base = "example.org/base:v1"
    image = "example.org/other:v1"
    missing_image = "example.org/nothing:v1"

    def successor(self) -> Backend:
        return VzLinuxBackend(root=self.root / "state")

    def machines(self) -> Collection[str]:
        return [path.name for path in self.home.glob("container-*")]

    def cannot_start(self, task_id: str) -> TaskSpec:
        return TaskSpec(
            id=task_id, name=task_id, image=self.base, entrypoint=("/no/such/command",), stderr_path=str(self.stderr_of(task_id))
        )


@pytest.fixture
def subject(tmp_path: Path, home: Path) -> VzLinuxSubject:
    for image in (VzLinuxSubject.base, VzLinuxSubject.image):
        (home / "images" / image.replace("/", "_")).write_text(json.dumps({"cmd": ["/bin/sh", "-c", "exit 9"]}))
    return VzLinuxSubject(tmp_path)


class GuestCases(AbilityCases):
    covers = frozenset({contract.HasOverlayKind, contract.HasState, contract.CanStreamUsage})

    async def test_usage_is_streamed(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.HasOverlayKind)
        assert isinstance(subject.backend, contract.CanStreamUsage)
        handle = await subject.start(subject.runs("task"))
        sample = await anext(await subject.backend.stream_usage(handle))
        assert (sample.pids, sample.cpu_total_ns, sample.memory_bytes, sample.memory_limit_bytes) == (2, 1_500_000, 1 << 20, 1 << 30)
        assert subject.backend.overlay_kind() is OverlayKind.GUEST_MANAGED
        await subject.backend.destroy(handle)


class TestVzLinux(
    suite.Verbs,
    suite.SignalCases,
    suite.ExecCases,
    suite.StreamExecCases,
    suite.UsageCases,
    suite.SweepCases,
    suite.PullCases,
    suite.ImageCases,
    GuestCases,
):
    backend = VzLinuxBackend
    evidence = Evidence.DOUBLE
