"""The shipped fake keeps the whole contract."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from zlayer_driver.backends.fake import FakeBackend, Machine
from zlayer_driver.contract import Backend
from zlayer_driver.model import TaskSpec
from zlayer_driver.testing import suite
from zlayer_driver.testing.subject import Subject


class FakeSubject(Subject):
    image = "example.org/app:v1"
    missing_image = "fake.invalid/app:v1"

    def __init__(self, logs: Path) -> None:
        self.machine = Machine()
        self.backend: Backend = FakeBackend(self.machine)
        self.logs = logs

    def successor(self) -> Backend:
        return FakeBackend(self.machine)

    async def remains(self) -> Collection[str]:
        return self.machine.containers.keys()

    def _spec(self, task_id: str, **labels: str) -> TaskSpec:
        return TaskSpec(
            id=task_id,
            name=task_id,
            image="example.org/base:v1",
            labels={f"fake.{key}": value for key, value in labels.items()},
            stdout_path=str(self.stdout_of(task_id)),
            stderr_path=str(self.stderr_of(task_id)),
        )

    def exits(self, task_id: str, code: int) -> TaskSpec:
        return self._spec(task_id, exit_code=str(code))

    def runs(self, task_id: str, *, ignoring: Sequence[str] = ()) -> TaskSpec:
        return self._spec(task_id, run_for="forever", ignores=",".join(ignoring))

    def prints(self, task_id: str, out: str, err: str) -> TaskSpec:
        return self._spec(task_id, stdout=out, stderr=err)

    def cannot_start(self, task_id: str) -> TaskSpec:
        return self._spec(task_id, start_error="no such command")

    def argv_exits(self, code: int) -> Sequence[str]:
        return ["exit", str(code)]

    def argv_prints(self, out: str, err: str) -> Sequence[str]:
        return ["print", out, err]

    def argv_blocks(self) -> Sequence[str]:
        return ["block"]

    def argv_reads(self) -> Sequence[str]:
        return ["read"]

    def argv_tells(self) -> Sequence[str]:
        return ["tell"]


class TestFake(
    suite.Verbs,
    suite.SignalCases,
    suite.ExecCases,
    suite.StreamExecCases,
    suite.ControlCases,
    suite.LogCases,
    suite.UsageCases,
    suite.OverlayCases,
    suite.GuestOverlayCases,
    suite.PullCases,
    suite.ImageCases,
):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        return FakeSubject(tmp_path)
