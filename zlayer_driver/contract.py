"""What a backend is: six verbs, and abilities that are protocols of their own.

A backend inherits nothing. It has the six verbs of `Backend`; each further thing that it can do is one of the ability protocols below,
found once when the backend is registered. No method exists to say «unsupported»: a missing ability is a missing method.

`start` may be called for a task whose earlier, half-made container is still on disk (the plugin was killed in between, and Nomad repeats
the call with the same id): it removes that first. `wait` may be cancelled and repeated without touching the task. `stop`
and `destroy` of a task that is gone succeed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from zlayer_driver.model import Auth, ExecResult, Exit, Fingerprint, Handle, ImageRecord, PullPolicy, Report, TaskSpec


class Backend(Protocol):
    """The six verbs. Errors are those of `zlayer_driver.errors`."""

    @property
    def name(self) -> str: ...

    async def probe(self) -> Fingerprint:
        """Whether this node can run it; changes nothing."""
        ...

    async def start(self, spec: TaskSpec) -> Mapping[str, Any]:
        """The `Handle.data` of a container that now runs: plain JSON, enough to recover from alone. On failure nothing of it is left."""
        ...

    async def recover(self, handle: Handle) -> None:
        """Takes a container of an earlier process back, ended or not; `NotFound` if it is gone. Starts and removes nothing."""
        ...

    async def wait(self, handle: Handle) -> Exit:
        """The exit, as soon as it happens; at once if it has happened."""
        ...

    async def stop(self, handle: Handle, *, timeout_s: float, signal: str) -> None:
        """Signals, waits up to ``timeout_s``, kills. Returns when it has ended. ``signal`` empty: the image's, else SIGTERM."""
        ...

    async def destroy(self, handle: Handle) -> None:
        """Removes everything of the container, running or not. Idempotent. With empty ``handle.data``: whatever lies under the task id."""
        ...


@runtime_checkable
class CanPull(Protocol):
    async def pull(self, image: str, *, policy: PullPolicy, auth: Auth | None, report: Report | None = None) -> None: ...


@runtime_checkable
class CanListImages(Protocol):
    async def list_images(self) -> Sequence[ImageRecord]: ...


@runtime_checkable
class CanSignal(Protocol):
    async def signal(self, handle: Handle, signal: str) -> None: ...


@runtime_checkable
class CanExec(Protocol):
    async def exec(self, handle: Handle, argv: Sequence[str], *, timeout_s: float) -> ExecResult:
        """Runs to its end; ``timeout_s`` 0 is no limit (`TimedOut` else). A command that does not exist is exit 127, not an error."""
        ...


@runtime_checkable
class CanSweep(Protocol):
    async def sweep(self) -> None:
        """Finishes what a killed predecessor left half made or half removed, and touches nothing else."""
        ...
