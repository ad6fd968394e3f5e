"""The krun backend keeps the contract with a double of krunvm."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from tests.contract.tool_subject import ToolSubject, home
from zlayer_driver import contract
from zlayer_driver.backends.krun import KrunBackend
from zlayer_driver.contract import Backend
from zlayer_driver.model import TaskSpec
from zlayer_driver.readings import OverlayKind
from zlayer_driver.testing import suite
from zlayer_driver.testing.cases import AbilityCases, Evidence
from zlayer_driver.testing.subject import Subject

__all__ = ["home"]


class KrunSubject(ToolSubject):
    base = "example.org/base:v1"

    def successor(self) -> Backend:
        return KrunBackend(root=self.root / "state")

    def machines(self) -> Collection[str]:
        path = self.home / "krunvm.json"
        return ast.literal_eval(path.read_text()).keys() if path.exists() else ()

    def runs(self, task_id: str, *, ignoring: Sequence[str] = ()) -> TaskSpec:
        """What the guest ignores is nothing to the machine; one that hangs ignores all."""
        spec = super().runs(task_id, ignoring=ignoring)
        return dataclasses.replace(spec, image="example.org/deaf:v1") if ignoring else spec

    def cannot_start(self, task_id: str) -> TaskSpec:
        return self.spec(task_id, "exit 0", image=self.missing_image)

    image = "example.org/base:v1"
    missing_image = "example.org/nothing:v1"


@pytest.fixture
def subject(tmp_path: Path, home: Path) -> KrunSubject:
    (home / "images/example.org_base:v1").write_text(json.dumps({"cmd": ["/bin/sh", "-c", "exit 9"]}))
    (home / "images/example.org_deaf:v1").write_text(json.dumps({"deaf": True}))
    return KrunSubject(tmp_path)


class KindCases(AbilityCases):
    covers = frozenset({contract.HasOverlayKind, contract.HasState})

    def test_kind(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.HasOverlayKind)
        assert subject.backend.overlay_kind() is OverlayKind.GUEST_MANAGED


class TestKrun(suite.Verbs, suite.SweepCases, KindCases):
    backend = KrunBackend
    evidence = Evidence.DOUBLE
