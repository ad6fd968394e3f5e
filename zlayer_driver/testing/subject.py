"""What the contract suite needs to know of a backend: how its tasks are made, and what is left of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path

from zlayer_driver.contract import Backend
from zlayer_driver.model import Exit, Handle, Target, TaskSpec


class Subject(ABC):
    """One backend under test, its state, and its ways to say what a task does.

    Specs are made for a task id; the same id gives a spec of the same task. Their output goes to files under ``logs``.
    """

    backend: Backend
    logs: Path

    @abstractmethod
    def successor(self) -> Backend:
        """What a new process would make over the same state. `backend` is no longer used after it."""

    @abstractmethod
    async def remains(self) -> Collection[str]:
        """Whatever there is on the machine of this backend's containers, by name: containers, processes, mounts, cgroups, directories."""

    @abstractmethod
    def exits(self, task_id: str, code: int) -> TaskSpec:
        """A task that ends with ``code`` by itself."""

    @abstractmethod
    def runs(self, task_id: str, *, ignoring: Sequence[str] = ()) -> TaskSpec:
        """A task that runs until a signal ends it, other than those named."""

    @abstractmethod
    def prints(self, task_id: str, out: str, err: str) -> TaskSpec:
        """A task that writes both, ends with 0, and logs to `stdout_of` and `stderr_of`."""

    @abstractmethod
    def cannot_start(self, task_id: str) -> TaskSpec:
        """A task whose start fails, as with a command that does not exist."""

    @abstractmethod
    def argv_exits(self, code: int) -> Sequence[str]:
        """A command for `exec`."""

    @abstractmethod
    def argv_prints(self, out: str, err: str) -> Sequence[str]: ...

    @abstractmethod
    def argv_blocks(self) -> Sequence[str]: ...

    def argv_tells(self) -> Sequence[str]:
        """A command that prints its variable ``PROBE``, its working directory and its user number, one a line."""
        return ["/bin/sh", "-c", 'echo "$PROBE"; pwd; id -u']

    def death(self, number: int) -> Exit:
        """How a task of `runs` ends that gets this signal and does not ignore it."""
        return Exit(128 + number, number)

    def argv_reads(self) -> Sequence[str]:
        """A command that reads one line from its input and prints ``got`` and the line."""
        return ["/bin/sh", "-c", 'read line; echo "got $line"']

    @property
    @abstractmethod
    def image(self) -> str:
        """The canonical reference of an image that can be pulled, and that no task of the subject's uses."""

    @property
    @abstractmethod
    def missing_image(self) -> str: ...

    def stdout_of(self, task_id: str) -> Path:
        return self.logs / f"{task_id}.out"

    def stderr_of(self, task_id: str) -> Path:
        return self.logs / f"{task_id}.err"

    async def start(self, spec: TaskSpec) -> Handle:
        """Starts a task; the handle has been through its bytes, as one of Nomad's has."""
        handle = Handle(spec.id, Target.PRIMARY, self.backend.name, await self.backend.start(spec))
        return Handle.loads(handle.dumps())
