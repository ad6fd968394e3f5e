"""The HCS backend keeps the contract with a double of ctr, whose containers are processes of this Linux."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import pytest

from tests.contract.tool_subject import ToolSubject, home
from zlayer_driver import contract
from zlayer_driver.backends.hcs import HcsBackend
from zlayer_driver.contract import Backend
from zlayer_driver.errors import InvalidSpec, NotFound, Unsupported
from zlayer_driver.model import Exit, Handle, Target, TaskSpec, TaskState
from zlayer_driver.readings import ExecOptions
from zlayer_driver.testing import suite
from zlayer_driver.testing.cases import DEADLINE_S, AbilityCases, Evidence, ended
from zlayer_driver.testing.exec_cases import ExecCases
from zlayer_driver.testing.subject import Subject

pytestmark = pytest.mark.needs("linux")

__all__ = ["home"]

BUILD = "10.0.20348"


class HcsSubject(ToolSubject):
    base = "example.org/base:v1"
    image = "example.org/app:v1"
    missing_image = "example.org/nothing:v1"

    def __init__(self, root: Path) -> None:
        self.started: list[HcsBackend] = []
        super().__init__(root)

    def successor(self) -> Backend:
        self.started.append(HcsBackend(root=self.root / "state", build=BUILD))
        return self.started[-1]

    async def remains(self) -> Collection[str]:
        """Who listens for events is the backend's."""
        return [found for found in await super().remains() if "b'events'" not in found]

    def machines(self) -> Collection[str]:
        return [path.name for kind in ("containers", "tasks") for path in (self.home / kind).iterdir()]

    def death(self, number: int) -> Exit:
        """Windows has no signals: what a control event ends has an exit code of its own."""
        return Exit(137, 9) if number == 9 else Exit(0xC000013A - (1 << 32))

    def cannot_start(self, task_id: str) -> TaskSpec:
        return TaskSpec(id=task_id, name=task_id, image=self.base, command="/no/such/command")


def publish(home: Path, reference: str, **config: Any) -> None:
    """An image in the double's registry."""
    document = {"os": "windows", "architecture": "amd64", "os.version": f"{BUILD}.1", **config}
    name = "".join(char if char.isalnum() else "-" for char in reference)
    (home / "content" / f"sha256:config-{name}").write_text(json.dumps(document))
    (home / "content" / f"sha256:{name}").write_text(json.dumps({"config": {"digest": f"sha256:config-{name}"}}))
    settings = json.loads((home / "ctr.json").read_text()) if (home / "ctr.json").exists() else {"registry": {}}
    settings["registry"][reference] = f"sha256:{name}"
    (home / "ctr.json").write_text(json.dumps(settings))


@pytest.fixture
async def subject(tmp_path: Path, home: Path) -> AsyncIterator[HcsSubject]:
    (home / "images").rmdir()
    for name in ("content", "containers", "tasks", "events"):
        (home / name).mkdir()
    publish(home, HcsSubject.image)
    publish(home, HcsSubject.base)
    (home / "images").write_text(json.dumps({HcsSubject.base: json.loads((home / "ctr.json").read_text())["registry"][HcsSubject.base]}))
    made = HcsSubject(tmp_path)
    yield made
    for backend in made.started:
        await backend.close()


class WindowsExecCases(ExecCases):
    async def test_exec_takes_options(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanExec)
        handle = await subject.start(subject.runs("task"))
        options = ExecOptions(user="ContainerUser", work_dir="/proc")
        result = await subject.backend.exec(handle, ["/bin/sh", "-c", "pwd"], timeout_s=DEADLINE_S, options=options)
        assert (result.exit, result.stdout) == (Exit(0), b"/proc\n")
        with pytest.raises(Unsupported, match="variables"):
            await subject.backend.exec(handle, subject.argv_tells(), timeout_s=DEADLINE_S, options=ExecOptions(env={"PROBE": "a value"}))
        await subject.backend.destroy(handle)


class WindowsSignalCases(AbilityCases):
    covers = frozenset({contract.CanSignal})

    async def test_signals_are_control_events(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanSignal)
        handle = await subject.start(subject.runs("task", ignoring=["SIGTERM"]))
        await subject.backend.signal(handle, "SIGTERM")
        for none in ("SIGUSR1", "SIGNIFICANT", "10"):
            with pytest.raises(InvalidSpec, match=none):
                await subject.backend.signal(handle, none)
        await subject.backend.signal(handle, "1")
        assert await ended(subject, handle) == subject.death(1)
        with pytest.raises(NotFound):
            await subject.backend.signal(handle, "SIGTERM")
        await subject.backend.destroy(handle)

    async def test_signal_to_nobody(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanSignal)
        with pytest.raises(NotFound):
            await subject.backend.signal(Handle("nobody", Target.PRIMARY, subject.backend.name, {}), "SIGTERM")


class ReadingCases(AbilityCases):
    covers = frozenset({contract.HasState, contract.HasPid})

    async def test_state_and_pid_are_containerds(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.HasState)
        assert isinstance(subject.backend, contract.HasPid)
        handle = await subject.start(subject.runs("task"))
        assert await subject.backend.state(handle) is TaskState.RUNNING
        assert Path(f"/proc/{await subject.backend.pid(handle)}").exists()
        await subject.backend.stop(handle, timeout_s=0, signal="SIGKILL")
        assert await subject.backend.state(handle) is TaskState.EXITED
        assert await subject.backend.pid(handle) is None
        await subject.backend.destroy(handle)


class TestHcs(
    suite.Verbs,
    WindowsSignalCases,
    WindowsExecCases,
    ReadingCases,
    suite.UsageCases,
    suite.PullCases,
    suite.ImageCases,
):
    backend = HcsBackend
    evidence = Evidence.DOUBLE
