"""The abilities of a backend at the other end of `wsl2_client.Remote`, each asked for by its own method of the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from zlayer_driver.backends.wsl2_client import Remote
from zlayer_driver.contract import (
    Backend,
    CanExec,
    CanInspectImage,
    CanListImages,
    CanPause,
    CanPruneImages,
    CanPull,
    CanRemoveImage,
    CanSignal,
    CanStreamExec,
    CanStreamUsage,
    CanSweep,
    CanTagImage,
    CanUpdate,
    HasImage,
    HasState,
    HasUsage,
)
from zlayer_driver.model import Auth, ExecResult, Handle, ImageRecord, PullPolicy, PullSource, Report, Resources, TaskState
from zlayer_driver.readings import ExecEvent, ExecInput, ExecOptions, ImageDetails, Pruned, Usage, UsageSample


class Calls:
    """What needs nothing of this side. A process id of the other side is none of this node, so `HasPid` is not among it."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    async def stop(self, handle: Handle, *, timeout_s: float, signal: str) -> None:
        await self._remote.call(Backend.stop, handle, timeout_s=timeout_s, signal=signal)

    async def destroy(self, handle: Handle) -> None:
        await self._remote.call(Backend.destroy, handle)

    async def signal(self, handle: Handle, signal: str) -> None:
        await self._remote.call(CanSignal.signal, handle, signal)

    async def exec(self, handle: Handle, argv: Sequence[str], *, timeout_s: float, options: ExecOptions | None = None) -> ExecResult:
        result: ExecResult = await self._remote.call(CanExec.exec, handle, argv, timeout_s=timeout_s, options=options)
        return result

    async def stream_exec(
        self, handle: Handle, argv: Sequence[str], *, tty: bool, stdin: AsyncIterator[ExecInput] | None = None
    ) -> AsyncIterator[ExecEvent]:
        return await self._remote.stream(CanStreamExec.stream_exec, handle, argv, tty=tty, stdin=stdin)

    async def pause(self, handle: Handle) -> None:
        await self._remote.call(CanPause.pause, handle)

    async def resume(self, handle: Handle) -> None:
        await self._remote.call(CanPause.resume, handle)

    async def update(self, handle: Handle, resources: Resources) -> Sequence[str]:
        warnings: Sequence[str] = await self._remote.call(CanUpdate.update, handle, resources)
        return warnings

    async def state(self, handle: Handle) -> TaskState:
        return TaskState(await self._remote.call(HasState.state, handle))

    async def usage(self, handle: Handle) -> Usage:
        usage: Usage = await self._remote.call(HasUsage.usage, handle)
        return usage

    async def stream_usage(self, handle: Handle) -> AsyncIterator[UsageSample]:
        return await self._remote.stream(CanStreamUsage.stream_usage, handle)

    async def sweep(self, *, orphans_after_s: float | None = None) -> None:
        await self._remote.call(CanSweep.sweep, orphans_after_s=orphans_after_s)

    async def pull(
        self,
        image: str,
        *,
        policy: PullPolicy,
        auth: Auth | None,
        report: Report | None = None,
        source: PullSource = PullSource.LOCAL_FIRST,
    ) -> None:
        await self._remote.call(CanPull.pull, image, policy=policy, auth=auth, report=report, source=source)

    async def list_images(self) -> Sequence[ImageRecord]:
        records: Sequence[ImageRecord] = await self._remote.call(CanListImages.list_images)
        return records

    async def has_image(self, image: str) -> bool:
        return bool(await self._remote.call(HasImage.has_image, image))

    async def inspect_image(self, image: str) -> ImageDetails:
        details: ImageDetails = await self._remote.call(CanInspectImage.inspect_image, image)
        return details

    async def tag_image(self, source: str, target: str) -> None:
        await self._remote.call(CanTagImage.tag_image, source, target)

    async def remove_image(self, image: str, *, force: bool) -> None:
        await self._remote.call(CanRemoveImage.remove_image, image, force=force)

    async def prune_images(self) -> Pruned:
        pruned: Pruned = await self._remote.call(CanPruneImages.prune_images)
        return pruned
