"""Backends that drive a tool, over a double of the tool: what their subjects share."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from tests.contract.fifos import heard
from tests.doubles.tools import BIN
from zlayer_driver.host.processes import command_lines
from zlayer_driver.model import Handle, TaskSpec
from zlayer_driver.testing.subject import Subject

SHELL = "/bin/sh"


class ToolSubject(Subject):
    """Containers are shells of this machine; ``root`` is in the command line of all that runs of them."""

    base: str

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.logs = root / "logs"
        self.logs.mkdir()
        self.backend = self.successor()

    async def remains(self) -> Collection[str]:
        processes = {f"process {pid}: {argv}" for pid, argv in command_lines() if pid != os.getpid() and self._is_ours(pid, argv)}
        return processes | {str(path) for path in (self.root / "state").glob("c/*")} | set(self.machines())

    def _is_ours(self, pid: int, argv: Sequence[bytes]) -> bool:
        try:
            return any(bytes(self.root) in part for part in argv) or bytes(self.home) in Path(f"/proc/{pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return False

    def machines(self) -> Collection[str]:
        """What the tool itself still has, by name."""
        return ()

    def exits(self, task_id: str, code: int) -> TaskSpec:
        return self.spec(task_id, f"exit {code}")

    def runs(self, task_id: str, *, ignoring: Sequence[str] = ()) -> TaskSpec:
        ignored = "; ".join(f"trap '' {name.removeprefix('SIG')}" for name in ignoring) or ":"
        os.mkfifo(self.stdout_of(task_id))
        return self.spec(task_id, f"{ignored}; echo ready; while :; do sleep 1000 & wait $!; done")

    def prints(self, task_id: str, out: str, err: str) -> TaskSpec:
        return self.spec(task_id, f"printf '{out}'; printf '{err}' >&2")

    async def start(self, spec: TaskSpec) -> Handle:
        """A task of `runs` says when it has set what it ignores."""
        if "echo ready" not in spec.args[-1]:
            return await super().start(spec)
        handle, said = await heard(Path(spec.stdout_path), super().start(spec))
        assert said == ["ready"]
        return handle

    def argv_exits(self, code: int) -> Sequence[str]:
        return [SHELL, "-c", f"exit {code}"]

    def argv_prints(self, out: str, err: str) -> Sequence[str]:
        return [SHELL, "-c", f"printf '{out}'; printf '{err}' >&2"]

    def argv_blocks(self) -> Sequence[str]:
        return ["sleep", "1000"]

    def spec(self, task_id: str, script: str, *, image: str = "") -> TaskSpec:
        return TaskSpec(
            id=task_id,
            name=task_id,
            image=image or self.base,
            command=SHELL,
            args=("-c", script),
            env={"DOUBLES": str(self.home)},
            stdout_path=str(self.stdout_of(task_id)),
            stderr_path=str(self.stderr_of(task_id)),
        )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The doubles on PATH, and where they keep what the real tools keep elsewhere."""
    found = tmp_path / "home"
    (found / "images").mkdir(parents=True)
    monkeypatch.setenv("DOUBLES", str(found))
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    return found
