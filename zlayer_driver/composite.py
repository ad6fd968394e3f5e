"""One node's backends as one: who has which container, and what is asked of whom.

The rules, each in one place:

=======================  ============================================================================================================
which target             `choose` and `fallbacks` of `zlayer_driver.choice`
a failed create          `Composite._start`: the next target tries; the last error is raised, the first is its cause; no record is made
a cancelled create       `Composite._start`: what it may have made is destroyed; no record is made
calls on a container     `Composite.forward`: its owner only
reads of a container     `Composite.read`: its owner, then the others; the error told is the last that is not `NotFound`
streams of a container   `Composite.stream_logs`, `Composite.stream_usage`: whoever streams; else one is made of a single reading
a pull                   `Composite.pull`: the primary must manage, unless the image is for another platform; the others may fail
calls on images          `Composite.first`, `list_images`, `remove_image`, `prune`, `image_store`
a missing ability        `Composite._ability`: `Unsupported`
=======================  ============================================================================================================

A record is made only once a container runs, and goes when the container is destroyed, whether or not the backend managed to. Ids do not
disturb each other; creating, adopting and destroying the same id wait for each other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import reduce
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from zlayer_driver import fastpath
from zlayer_driver.choice import Choice, NodeShape, Request, choose, fallbacks
from zlayer_driver.contract import (
    Backend,
    CanExec,
    CanListImages,
    CanPull,
    CanRemoveImage,
    CanSignal,
    CanStreamLogs,
    CanStreamUsage,
    HasImage,
    HasImageStore,
    HasLogs,
    HasOverlayKind,
    HasUsage,
    SecretsProvider,
    TakesSecrets,
    abilities,
    declared_in,
)
from zlayer_driver.errors import CacheError, DriverError, InternalError, NotFound, Unsupported, WrongPlatform
from zlayer_driver.model import (
    OS,
    Auth,
    ExecResult,
    Exit,
    Handle,
    ImageFacts,
    ImageRecord,
    PullPolicy,
    PullProgress,
    PullSource,
    Report,
    Target,
    TaskSpec,
)
from zlayer_driver.readings import ExecOptions, LogChunk, LogOptions, OverlayKind, Pruned, UsageSample
from zlayer_driver.snapshot import U64_MAX, line_count, log_chunks, usage_samples
from zlayer_driver.waiting import to_its_end

OnFallback = Callable[[TaskSpec, Target, Target, DriverError], None]
OnMiss = Callable[[Target, DriverError], None]
P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Composite:
    """``facts`` reads the local caches (it may block; it never asks the network). ``fallback`` names further targets for failed creates."""

    def __init__(
        self,
        backends: Mapping[Target, Backend],
        *,
        native_os: OS,
        facts: Callable[[str], ImageFacts],
        fallback: Sequence[Target] = (),
        on_fallback: OnFallback | None = None,
    ) -> None:
        if Target.PRIMARY not in backends:
            raise InternalError("a node was assembled without a primary backend")
        self._backends = {target: backends[target] for target in Target if target in backends}
        self._abilities = {target: abilities(backend) | {Backend} for target, backend in self._backends.items()}
        self.shape = NodeShape(native_os, frozenset(self._backends))
        self._fallback = tuple(fallback)
        self._on_fallback = on_fallback
        self._probe = facts
        self._facts: dict[str, ImageFacts] = {}
        self._records: dict[str, Handle] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # The life of a container.

    def decide(self, request: Request, facts: ImageFacts) -> Choice:
        """Where this node would run it."""
        return choose(request, facts, self.shape)

    async def create(self, spec: TaskSpec) -> Handle:
        """Chooses a target and starts the container there, or on the next that may. A failed re-create keeps the earlier record."""
        async with self._lock(spec.id):
            facts = await self.facts(spec.image)
            target = self.decide(Request.of(spec), facts).target
            handle = await self._start(spec, target, fallbacks(target, facts, self.shape, self._fallback))
            self._records[spec.id] = handle
            return handle

    async def _start(self, spec: TaskSpec, target: Target, others: Sequence[Target], first: DriverError | None = None) -> Handle:
        backend = self._backends[target]
        try:
            return Handle(spec.id, target, backend.name, await backend.start(spec))
        except asyncio.CancelledError:
            await self._undo(spec.id, target)
            raise
        except DriverError as error:
            if not others:
                raise error from first
            if self._on_fallback:
                self._on_fallback(spec, target, others[0], error)
            return await self._start(spec, others[0], others[1:], first or error)

    async def _undo(self, task_id: str, target: Target) -> None:
        """Destroys what a cancelled start may have made, but never an earlier container of the same id."""
        if (record := self._records.get(task_id)) and record.target is target:
            return
        try:
            await to_its_end(self._backends[target].destroy(self._by_id(task_id, target)))
        except DriverError as error:
            _log.warning("what a cancelled start of %r made on %s could not be removed: %s", task_id, target, error)

    async def adopt(self, handle: Handle) -> None:
        """Takes a container of an earlier process back; `NotFound` if it, or its backend, is gone."""
        backend = self._backends.get(handle.target)
        if backend is None or backend.name != handle.backend:
            raise NotFound(handle.task_id, f"this node no longer has the backend {handle.backend} on target {handle.target}")
        async with self._lock(handle.task_id):
            await backend.recover(handle)
            self._records[handle.task_id] = handle

    async def destroy(self, task_id: str) -> None:
        """Removes the container and its record; the record goes even if the backend fails."""
        async with self._lock(task_id):
            handle = self._record(task_id)
            try:
                await to_its_end(self._backends[handle.target].destroy(handle))
            finally:
                del self._records[task_id]

    async def purge(self, task_id: str) -> None:
        """Removes, on every target, what an earlier process may have left under an id that has no record."""
        async with self._lock(task_id):
            for target, backend in self._backends.items():
                await to_its_end(backend.destroy(self._by_id(task_id, target)))

    def owner(self, task_id: str) -> Target:
        """The target that has the container."""
        return self._record(task_id).target

    def handles(self) -> tuple[Handle, ...]:
        """All containers that there are records of."""
        return tuple(self._records.values())

    async def wait(self, task_id: str) -> Exit:
        return await self.forward(task_id, Backend.wait)

    async def stop(self, task_id: str, *, timeout_s: float, signal: str = "") -> None:
        await self.forward(task_id, Backend.stop, timeout_s=timeout_s, signal=signal)

    async def signal(self, task_id: str, signal: str) -> None:
        await self.forward(task_id, CanSignal.signal, signal)

    async def exec(self, task_id: str, argv: Sequence[str], *, timeout_s: float, options: ExecOptions | None = None) -> ExecResult:
        return await self.forward(task_id, CanExec.exec, argv, timeout_s=timeout_s, options=options)

    # Calls on one container. ``method`` is a method of a protocol of `zlayer_driver.contract`, such as ``CanPause.pause``.

    async def forward(
        self, task_id: str, method: Callable[Concatenate[Any, Handle, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What the container's owner answers."""
        handle = self._record(task_id)
        return await self._ability(handle.target, method)(handle, *args, **kwargs)

    async def read(self, task_id: str, method: Callable[Concatenate[Any, Handle, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """The first answer, of the owner before the others. Without one: the last error that is not `NotFound`, else the last."""
        handle = self._record(task_id)
        errors: list[DriverError] = []
        for target in (handle.target, *(other for other in self._backends if other is not handle.target)):
            try:
                asked = handle if target is handle.target else self._by_id(task_id, target)
                return await self._ability(target, method)(asked, *args, **kwargs)
            except DriverError as error:
                errors.append(error)
        raise reduce(_weightier, errors)

    async def stream_logs(self, task_id: str, options: LogOptions) -> AsyncIterator[LogChunk]:
        """A backend's own stream, else one that ends, made of the lines captured so far."""
        try:
            return await self.read(task_id, CanStreamLogs.stream_logs, options)
        except DriverError as error:
            lines = await _instead(error, self.read(task_id, HasLogs.logs, line_count(options)))
            return log_chunks(lines, options)

    async def stream_usage(self, task_id: str) -> AsyncIterator[UsageSample]:
        """A backend's own stream, else one that ends after the sample of now."""
        try:
            return await self.read(task_id, CanStreamUsage.stream_usage)
        except DriverError as error:
            return usage_samples(await _instead(error, self.read(task_id, HasUsage.usage)))

    # Images.

    async def pull(
        self,
        image: str,
        *,
        policy: PullPolicy,
        auth: Auth | None,
        report: Report | None = None,
        source: PullSource = PullSource.LOCAL_FIRST,
    ) -> None:
        """Fetches the image for every target that may run it, and learns its facts.

        The primary is asked first, and its failure is the pull's, unless it is that the image is for another platform. The others may
        fail. Under `PullPolicy.IF_NOT_PRESENT` an image that any target lists is not asked of the primary; the others still fill
        their own stores from it. ``report`` gets a first and a last step at least.
        """
        tell: Report = report or (lambda _step: None)
        tell(PullProgress(image, "resolve"))
        present = policy is PullPolicy.IF_NOT_PRESENT and await self._is_listed(image)
        for target in self._backends:
            if present and target is Target.PRIMARY:
                continue
            try:
                await self._ability(target, CanPull.pull)(image, policy=policy, auth=auth, report=report, source=source)
            except DriverError as error:
                if target is Target.PRIMARY and not isinstance(error, WrongPlatform):
                    raise
                _log.debug("target %s did not pull %r: %s", target, image, error)
        await self._learn(image)
        tell(PullProgress(image, "done"))

    async def facts(self, image: str) -> ImageFacts:
        """What is known of an image: from memory, else from the local caches."""
        return self._facts.get(fastpath.canonical(image)) or await self._learn(image)

    async def _learn(self, image: str) -> ImageFacts:
        """Asks the caches once for all facts. What they do not know, or no longer, stays as it was."""
        known = self._facts.get(key := fastpath.canonical(image)) or ImageFacts()
        try:
            found = await asyncio.to_thread(self._probe, image)
        except CacheError as error:
            _log.warning("nothing was learnt of image %r: %s", image, error)
            return known
        marker, isolation = (old if new is None else new for old, new in ((known.marker, found.marker), (known.isolation, found.isolation)))
        facts = ImageFacts(found.os or known.os, marker, isolation)
        if facts != ImageFacts():
            self._facts[key] = facts
        return facts

    async def _is_listed(self, image: str) -> bool:
        try:
            if all(HasImage in found for found in self._abilities.values()):
                return any((await self._each(HasImage.has_image, image))[0])
            return any(record.reference == image for record in await self.list_images())
        except DriverError as error:
            _log.debug("no target lists images: %s", error)
            return False

    async def first(self, method: Callable[Concatenate[Any, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """The first answer, in the order of the targets; without one, the first error."""
        errors: list[DriverError] = []
        for target in self._backends:
            try:
                return await self._ability(target, method)(*args, **kwargs)
            except DriverError as error:
                errors.append(error)
        raise errors[0]

    async def list_images(self, on_miss: OnMiss | None = None) -> list[ImageRecord]:
        """The images of all targets, each reference once; the last error if no target answers.

        ``on_miss`` hears of the targets that could have answered, and failed.
        """
        answers, errors = await self._each(CanListImages.list_images)
        if not answers:
            raise list(errors.values())[-1]
        _tell(errors, on_miss)
        found: dict[str, ImageRecord] = {}
        for record in (record for records in answers for record in records):
            found.setdefault(record.reference, record)
        return list(found.values())

    async def remove_image(self, image: str, *, force: bool, on_miss: OnMiss | None = None) -> None:
        """Removes it from every target that has it; the first error if none had it. ``on_miss`` as in `list_images`."""
        answers, errors = await self._each(CanRemoveImage.remove_image, image, force=force)
        if not answers:
            raise next(iter(errors.values()))
        _tell(errors, on_miss)

    async def prune(self, method: Callable[[Any], Awaitable[Pruned]]) -> Pruned:
        """What all targets removed. A failure of the primary counts, unless it cannot prune and there are others."""
        results = []
        for target in self._backends:
            try:
                results.append(await self._ability(target, method)())
            except DriverError as error:
                alone = len(self._backends) == 1
                if target is Target.PRIMARY and (alone or not isinstance(error, Unsupported)):
                    raise
                _log.warning("target %s did not prune: %s", target, error)
        deleted = tuple(name for result in results for name in result.deleted)
        return Pruned(deleted, min(sum(result.reclaimed_bytes for result in results), U64_MAX))

    def image_store(self) -> object | None:
        """The first image store that a target shares."""
        return next((store for ask in self._able(HasImageStore.image_store) if (store := ask()) is not None), None)

    async def _each(
        self, method: Callable[Concatenate[Any, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[list[T], dict[Target, DriverError]]:
        """What all targets answer, in their order, and the errors of those that do not."""
        answers, errors = list[T](), dict[Target, DriverError]()
        for target in self._backends:
            try:
                answers.append(await self._ability(target, method)(*args, **kwargs))
            except DriverError as error:
                errors[target] = error
        return answers, errors

    # The node as a whole.

    def overlay_kind(self, task_id: str | None = None) -> OverlayKind:
        """How the container joins the overlay; without a known one, how most of this node's do: the Linux guest's way, where there is one."""
        usual = Target.VZ_LINUX if Target.VZ_LINUX in self._backends else Target.PRIMARY
        record = self._records.get(task_id) if task_id else None
        return self._ability(record.target if record else usual, HasOverlayKind.overlay_kind)()

    def set_secrets(self, provider: SecretsProvider) -> None:
        """Gives every target that takes one the provider: each may come to start a task that names a secret."""
        for give in self._able(TakesSecrets.set_secrets):
            give(provider)

    def _able(self, method: Callable[Concatenate[Any, P], T]) -> list[Callable[P, T]]:
        """``method`` of each target that has it."""
        return [self._ability(target, method) for target, able in self._abilities.items() if declared_in(method) in able]

    def _ability(self, target: Target, method: Callable[Concatenate[Any, P], T]) -> Callable[P, T]:
        """The target's own ``method``."""
        backend = self._backends[target]
        if declared_in(method) not in self._abilities[target]:
            raise Unsupported(f"backend {backend.name} on target {target} cannot {method.__name__.replace('_', ' ')}")
        bound: Callable[P, T] = getattr(backend, method.__name__)
        return bound

    def _record(self, task_id: str) -> Handle:
        try:
            return self._records[task_id]
        except KeyError:
            raise NotFound(task_id, "this node has no record of it") from None

    def _by_id(self, task_id: str, target: Target) -> Handle:
        """A handle for a target that never gave one for this id."""
        return Handle(task_id, target, self._backends[target].name, {})

    def _lock(self, task_id: str) -> asyncio.Lock:
        return self._locks.setdefault(task_id, asyncio.Lock())


def _tell(errors: Mapping[Target, DriverError], on_miss: OnMiss | None) -> None:
    for target, error in errors.items():
        if on_miss is not None and not isinstance(error, Unsupported | NotFound):
            on_miss(target, error)


def _weightier(told: DriverError, error: DriverError) -> DriverError:
    """The one to tell of two misses in a row: «not here» says less than anything else, and of equals the later counts."""
    return told if isinstance(error, NotFound) and not isinstance(told, NotFound) else error


async def _instead(error: DriverError, reading: Awaitable[T]) -> T:
    """What ``reading`` gives after ``error``."""
    try:
        return await reading
    except DriverError as second:
        raise _weightier(error, second) from None
