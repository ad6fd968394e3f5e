"""The backend keeps the contract."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
from zlayer_driver_process.backend import ProcessBackend

from zlayer_driver import backends
from zlayer_driver.config import PluginConfig
from zlayer_driver.contract import Backend
from zlayer_driver.host.processes import command_lines
from zlayer_driver.image.store import ImageStore
from zlayer_driver.model import Handle, Target, TaskSpec
from zlayer_driver.testing import suite
from zlayer_driver.testing.subject import Subject


class ProcessSubject(Subject):
    image = missing_image = ""  # no ability of its is about images

    def __init__(self, root: Path) -> None:
        self.root = root
        self.logs = root / "logs"
        self.logs.mkdir()
        self.backend: Backend = self.successor()

    def successor(self) -> Backend:
        return ProcessBackend(self.root / "state")

    async def remains(self) -> Collection[str]:
        """Tasks have the root in their command line, as supervisors do."""
        running = {f"process {pid}: {argv}" for pid, argv in command_lines() if any(bytes(self.root) in part for part in argv)}
        return running | {str(path) for path in (self.root / "state").glob("*")}

    def exits(self, task_id: str, code: int) -> TaskSpec:
        return self._spec(task_id, f"exit {code}")

    def runs(self, task_id: str, *, ignoring: Sequence[str] = ()) -> TaskSpec:
        ignored = "; ".join(f"trap '' {name.removeprefix('SIG')}" for name in ignoring) or ":"
        os.mkfifo(self.stdout_of(task_id))
        return self._spec(task_id, f"{ignored}; echo ready; while :; do sleep 1000 & wait $!; done")

    async def start(self, spec: TaskSpec) -> Handle:
        """A task of `runs` says when it has set what it ignores."""
        handle = await super().start(spec)
        if "echo ready" in " ".join(spec.args):
            await asyncio.to_thread(_first_line, spec.stdout_path)
        return handle

    def prints(self, task_id: str, out: str, err: str) -> TaskSpec:
        return self._spec(task_id, f"printf '{out}'; printf '{err}' >&2")

    def cannot_start(self, task_id: str) -> TaskSpec:
        return TaskSpec(id=task_id, name=task_id, image="example.org/unused:v1", command="/no/such/command")

    def argv_exits(self, code: int) -> Sequence[str]:
        raise NotImplementedError  # it has no exec

    argv_prints = argv_blocks = argv_exits  # type: ignore[assignment]  # nor these

    def _spec(self, task_id: str, script: str) -> TaskSpec:
        return TaskSpec(
            id=task_id,
            name=task_id,
            image="example.org/unused:v1",
            command="/bin/sh",
            args=("-c", script, str(self.root)),
            stdout_path=str(self.stdout_of(task_id)),
            stderr_path=str(self.stderr_of(task_id)),
        )


def _first_line(path: str) -> None:
    with Path(path).open() as file:
        file.readline()


class TestProcess(suite.Verbs, suite.SignalCases):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        return ProcessSubject(tmp_path)


def test_the_operator_can_name_it(tmp_path: Path) -> None:
    config = PluginConfig(state_dir=str(tmp_path), delegate="process")
    made = backends.build(backends.Context(config, ImageStore(tmp_path / "images")))
    assert isinstance(made[Target.DELEGATE], ProcessBackend)
    assert backends.faults() == {"process": ""}
