"""What a backend is: six verbs, and abilities that are protocols of their own.

A backend inherits nothing. It has the six verbs of `Backend`; each further thing that it can do is one of the ability protocols below,
found once when the backend is registered (`abilities`). No method exists to say «unsupported»: a missing ability is a missing method.

`start` may be called for a task whose earlier, half-made container is still on disk (the plugin was killed in between, and Nomad repeats
the call with the same id): it removes that first. `wait` may be cancelled and repeated without touching the task. `stop`
and `destroy` of a task that is gone succeed.

A handle whose ``data`` is empty names a container by its task id alone: `destroy` removes whatever there is under it (as after a cancelled
`start`), and a read (``Has…``, ``CanStream…``) is answered if the backend has the container.

Every method raises only `zlayer_driver.errors`; of a container that the backend does not have, `NotFound`. A method that gives an
async iterator fails, if it fails, before it gives it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, runtime_checkable

from zlayer_driver.model import (
    Auth,
    ExecResult,
    Exit,
    Fingerprint,
    Handle,
    ImageRecord,
    PullPolicy,
    PullSource,
    Report,
    Resources,
    TaskSpec,
    TaskState,
)
from zlayer_driver.readings import (
    ContainerDetails,
    ExecEvent,
    ExecInput,
    ExecOptions,
    FileChange,
    FileStat,
    GuestOverlay,
    ImageDetails,
    LogChunk,
    LogLine,
    LogOptions,
    Outcome,
    OverlayKind,
    PortMapping,
    Pruned,
    Usage,
    UsageSample,
    WaitCondition,
)


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
        """Removes everything of the container, running or not. Idempotent."""
        ...


# What can be done with one container.


@runtime_checkable
class CanSignal(Protocol):
    async def signal(self, handle: Handle, signal: str) -> None:
        """``signal`` is a name or number; empty is the backend's default."""
        ...


@runtime_checkable
class CanExec(Protocol):
    async def exec(self, handle: Handle, argv: Sequence[str], *, timeout_s: float, options: ExecOptions | None = None) -> ExecResult:
        """Runs to its end; ``timeout_s`` 0 is no limit (`TimedOut` else). A command that does not exist is exit 127, not an error."""
        ...


@runtime_checkable
class CanStreamExec(Protocol):
    async def stream_exec(
        self, handle: Handle, argv: Sequence[str], *, tty: bool, stdin: AsyncIterator[ExecInput] | None = None
    ) -> AsyncIterator[ExecEvent]:
        """Output as it comes, then one event with the exit code. The end of ``stdin`` is the command's EOF; closing the iterator kills it."""
        ...


@runtime_checkable
class CanFeed(Protocol):
    """The container's own standard input."""

    async def write_stdin(self, handle: Handle, data: bytes) -> None: ...

    async def close_stdin(self, handle: Handle) -> None: ...


@runtime_checkable
class CanRestart(Protocol):
    async def restart(self, handle: Handle) -> None:
        """Runs a container again that was made and does not run."""
        ...


@runtime_checkable
class CanPause(Protocol):
    async def pause(self, handle: Handle) -> None: ...

    async def resume(self, handle: Handle) -> None: ...


@runtime_checkable
class CanUpdate(Protocol):
    async def update(self, handle: Handle, resources: Resources) -> Sequence[str]:
        """Sets the limits that are not at their default; warnings come back."""
        ...


@runtime_checkable
class CanRename(Protocol):
    async def rename(self, handle: Handle, name: str) -> None:
        """Changes the name that people see, never the task id."""
        ...


@runtime_checkable
class CanSyncVolumes(Protocol):
    async def sync_volumes(self, handle: Handle) -> None:
        """Returns when what the container wrote to its volumes is on their backing store."""
        ...


# What can be read of one container.


@runtime_checkable
class HasState(Protocol):
    async def state(self, handle: Handle) -> TaskState: ...


@runtime_checkable
class HasOutcome(Protocol):
    async def outcome(self, handle: Handle, condition: WaitCondition | None = None) -> Outcome:
        """Waits for ``condition``; without one, as `Backend.wait`."""
        ...


@runtime_checkable
class HasPid(Protocol):
    async def pid(self, handle: Handle) -> int | None:
        """The container's first process in the host's numbering; ``None`` where the host has none."""
        ...


@runtime_checkable
class HasAddress(Protocol):
    async def address(self, handle: Handle) -> str | None: ...


@runtime_checkable
class HasPortOverride(Protocol):
    async def port_override(self, handle: Handle) -> int | None:
        """The host port on which the container's only service answers, where it differs from the one in its spec."""
        ...


@runtime_checkable
class HasPorts(Protocol):
    async def ports(self, handle: Handle) -> Sequence[PortMapping]: ...


@runtime_checkable
class HasDetails(Protocol):
    async def inspect(self, handle: Handle) -> ContainerDetails: ...


@runtime_checkable
class HasProcesses(Protocol):
    async def processes(self, handle: Handle) -> Sequence[Sequence[str]]:
        """Rows of text, the first with the titles."""
        ...


@runtime_checkable
class HasChanges(Protocol):
    async def changes(self, handle: Handle) -> Sequence[FileChange]: ...


@runtime_checkable
class HasLogs(Protocol):
    async def logs(self, handle: Handle, tail: int | None = None) -> Sequence[LogLine]:
        """The last ``tail`` lines, oldest first; all without it."""
        ...


@runtime_checkable
class CanStreamLogs(Protocol):
    async def stream_logs(self, handle: Handle, options: LogOptions) -> AsyncIterator[LogChunk]: ...


@runtime_checkable
class HasUsage(Protocol):
    async def usage(self, handle: Handle) -> Usage: ...


@runtime_checkable
class CanStreamUsage(Protocol):
    async def stream_usage(self, handle: Handle) -> AsyncIterator[UsageSample]: ...


# Files of one container. Tar streams are uncompressed.


@runtime_checkable
class CanCopy(Protocol):
    async def copy_out(self, handle: Handle, path: str) -> AsyncIterator[bytes]: ...

    async def copy_in(self, handle: Handle, path: str, tar: AsyncIterator[bytes]) -> None: ...

    async def stat(self, handle: Handle, path: str) -> FileStat: ...


@runtime_checkable
class CanExport(Protocol):
    async def export(self, handle: Handle) -> AsyncIterator[bytes]: ...


@runtime_checkable
class CanCommit(Protocol):
    async def commit(self, handle: Handle, reference: str) -> str:
        """The id of an image made of the container's file system, stored as ``reference``."""
        ...


# The overlay network.


@runtime_checkable
class HasOverlayKind(Protocol):
    def overlay_kind(self) -> OverlayKind: ...


@runtime_checkable
class CanAttachOverlay(Protocol):
    async def attach_overlay(self, handle: Handle, address: str) -> None: ...

    async def detach_overlay(self, handle: Handle) -> None: ...


@runtime_checkable
class TakesOverlayConfig(Protocol):
    async def push_overlay(self, handle: Handle, overlay: GuestOverlay) -> None:
        """Gives the agent in the guest its overlay identity and peers."""
        ...


# Images. ``image`` is canonical where it parses.


@runtime_checkable
class CanPull(Protocol):
    async def pull(
        self,
        image: str,
        *,
        policy: PullPolicy,
        auth: Auth | None,
        report: Report | None = None,
        source: PullSource = PullSource.LOCAL_FIRST,
    ) -> None: ...


@runtime_checkable
class CanListImages(Protocol):
    async def list_images(self) -> Sequence[ImageRecord]: ...


@runtime_checkable
class HasImage(Protocol):
    async def has_image(self, image: str) -> bool: ...  # whether `CanListImages` would list it, without listing all


@runtime_checkable
class CanRemoveImage(Protocol):
    async def remove_image(self, image: str, *, force: bool) -> None: ...


@runtime_checkable
class CanTagImage(Protocol):
    async def tag_image(self, source: str, target: str) -> None: ...


@runtime_checkable
class CanInspectImage(Protocol):
    async def inspect_image(self, image: str) -> ImageDetails: ...


@runtime_checkable
class CanPruneImages(Protocol):
    async def prune_images(self) -> Pruned: ...


@runtime_checkable
class HasImageHistory(Protocol):
    async def image_history(self, image: str) -> Sequence[str]:
        """What made each layer, newest first."""
        ...


@runtime_checkable
class CanSearchImages(Protocol):
    async def search_images(self, term: str) -> Sequence[str]: ...


@runtime_checkable
class CanMoveImages(Protocol):
    """Images as archives in the OCI layout, and root file systems as plain tar streams."""

    async def save_images(self, images: Sequence[str]) -> AsyncIterator[bytes]: ...

    async def load_images(self, archive: AsyncIterator[bytes]) -> Sequence[ImageRecord]: ...

    async def import_image(self, tar: AsyncIterator[bytes], reference: str) -> str: ...


@runtime_checkable
class HasImageStore(Protocol):
    def image_store(self) -> object | None:
        """The store that the backend keeps its images in, for those who share it; ``None`` if it has none just now."""
        ...


# The backend as a whole.


@runtime_checkable
class CanSweep(Protocol):
    async def sweep(self, *, orphans_after_s: float | None = None) -> None:
        """Finishes what a killed predecessor left half made or half removed; with ``orphans_after_s``, removes too what has run for so long without a living process that started or recovered it."""
        ...


@runtime_checkable
class CanPruneContainers(Protocol):
    async def prune_containers(self) -> Pruned:
        """Removes containers that ended and that nobody keeps."""
        ...


@runtime_checkable
class TakesSecrets(Protocol):
    def set_secrets(self, provider: SecretsProvider) -> None: ...


class SecretsProvider(Protocol):
    async def secret(self, name: str) -> str: ...


ABILITIES: Final[frozenset[type]] = frozenset(
    item for item in vars().copy().values() if Protocol in getattr(item, "__bases__", ()) and item not in {Backend, SecretsProvider}
)
_MEMBERS: Final = {protocol: tuple(name for name in vars(protocol) if not name.startswith("_")) for protocol in {*ABILITIES, Backend}}
VERBS: Final = _MEMBERS[Backend]
_DECLARED_IN: Final = {vars(protocol)[name]: protocol for protocol, names in _MEMBERS.items() for name in names}


def abilities(backend: object) -> frozenset[type]:
    """The ability protocols that ``backend`` fulfils."""
    return frozenset(ability for ability in ABILITIES if all(callable(getattr(backend, name, None)) for name in _MEMBERS[ability]))


def declared_in(method: Callable[..., Any]) -> type:
    """The protocol that declares ``method``: `CanSignal` for ``CanSignal.signal``, `Backend` for a verb."""
    return _DECLARED_IN[method]
