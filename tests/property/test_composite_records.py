"""Who has which container, as a state machine: failing backends, concurrent and cancelled calls, restarts.

What must hold at any time: an id has one owner at most, and the owner's machine has the container; no record is left after a
destroy, or after a create that failed or was cancelled; a failed re-create loses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from zlayer_driver.backends.fake import FakeBackend, Machine
from zlayer_driver.composite import Composite
from zlayer_driver.contract import HasState
from zlayer_driver.errors import CreateFailed, DriverError, InternalError, NotFound
from zlayer_driver.model import OS, Handle, ImageFacts, Isolation, Target, TaskSpec, TaskState

IMAGE = "docker.io/library/app:v1"
WISHES = {
    Isolation.SANDBOX: Target.PRIMARY,
    Isolation.VM: Target.DELEGATE,
    Isolation.VZ: Target.VZ,
    Isolation.VZ_LINUX: Target.VZ_LINUX,
}
ids = st.sampled_from(["a", "b", "c"])
wishes = st.sampled_from(list(WISHES))
ailing = st.frozensets(st.sampled_from(Target))


class Weather:
    """Which targets fail just now, at what."""

    def __init__(self) -> None:
        self.no_start: frozenset[Target] = frozenset()
        self.no_destroy: frozenset[Target] = frozenset()


class Ailing(FakeBackend):
    def __init__(self, target: Target, machine: Machine, weather: Weather) -> None:
        super().__init__(machine, name=f"fake-{target}")
        self._target = target
        self._weather = weather

    async def start(self, spec: TaskSpec) -> Mapping[str, Any]:
        await asyncio.sleep(0)
        if self._target in self._weather.no_start:
            raise CreateFailed(spec.id, f"{self._target} fails")
        return await super().start(spec)

    async def destroy(self, handle: Handle) -> None:
        await asyncio.sleep(0)
        if self._target in self._weather.no_destroy:
            raise InternalError(f"{self._target} fails")
        await super().destroy(handle)


def spec(task_id: str, wish: Isolation, *, blocks: bool = False) -> TaskSpec:
    labels = {"fake.run_for": "forever", **({"fake.start_blocks": "true"} if blocks else {})}
    return TaskSpec(id=task_id, name=task_id, service="web", image=IMAGE, runtime=wish, labels=labels)


class Records(RuleBasedStateMachine):
    """`owners` is what the records must say."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.machines = {target: Machine() for target in Target}
        self.weather = Weather()
        self.owners: dict[str, Target] = {}
        self.composite = self.assembled()

    def assembled(self) -> Composite:
        return Composite(
            {target: Ailing(target, machine, self.weather) for target, machine in self.machines.items()},
            native_os=OS.DARWIN,
            facts=lambda image: ImageFacts(OS.DARWIN),
            fallback=(Target.DELEGATE,),
        )

    def containers(self) -> set[tuple[Target, str]]:
        return {(target, task_id) for target, machine in self.machines.items() for task_id in machine.containers}

    @rule(task_id=ids, wish=wishes, no_start=ailing)
    def create(self, task_id: str, wish: Isolation, no_start: frozenset[Target]) -> None:
        self.weather.no_start = no_start
        tried = dict.fromkeys([WISHES[wish], *([Target.VZ] if wish is Isolation.SANDBOX else []), Target.DELEGATE])
        expected = next((target for target in tried if target not in no_start), None)
        before = self.containers()
        if expected is None:
            with pytest.raises(CreateFailed) as caught:
                self.runner.run(self.composite.create(spec(task_id, wish)))
            assert len(tried) == 1 or isinstance(caught.value.__cause__, CreateFailed)
            assert self.containers() == before
        else:
            assert self.runner.run(self.composite.create(spec(task_id, wish))).target is expected
            assert self.containers() == before | {(expected, task_id)}
            self.owners[task_id] = expected

    @rule(task_id=ids, wish=wishes, turns=st.integers(0, 8), no_destroy=ailing)
    def cancelled_create(self, task_id: str, wish: Isolation, turns: int, no_destroy: frozenset[Target]) -> None:
        self.weather.no_start, self.weather.no_destroy = frozenset(), no_destroy

        before = self.containers()

        async def attempt() -> None:
            creating = asyncio.create_task(self.composite.create(spec(task_id, wish, blocks=True)))
            for _ in range(turns):
                await asyncio.sleep(0)
            creating.cancel()
            await asyncio.wait([creating])
            assert creating.cancelled()

        self.runner.run(attempt())
        assert self.containers() <= before

    @rule(task_id=ids, no_destroy=ailing)
    def destroy(self, task_id: str, no_destroy: frozenset[Target]) -> None:
        self.weather.no_destroy = no_destroy
        owner = self.owners.pop(task_id, None)
        try:
            self.runner.run(self.composite.destroy(task_id))
        except NotFound:
            assert owner is None
        except InternalError:
            assert owner in no_destroy

    @rule(calls=st.lists(st.tuples(ids, st.none() | wishes, st.booleans()), min_size=2, max_size=8), no_start=ailing)
    def at_once(self, calls: list[tuple[str, Isolation | None, bool]], no_start: frozenset[Target]) -> None:
        """Creates (with a wish) and destroys (without), some cancelled; ids that none of them names keep their owners."""
        self.weather.no_start, self.weather.no_destroy = no_start, frozenset()

        async def one(task_id: str, wish: Isolation | None) -> None:
            await (self.composite.create(spec(task_id, wish)) if wish else self.composite.destroy(task_id))

        async def all_of_them() -> list[BaseException | None]:
            tasks = [asyncio.create_task(one(task_id, wish)) for task_id, wish, _ in calls]
            await asyncio.sleep(0)
            for task, (_, _, cancelled) in zip(tasks, calls, strict=True):
                if cancelled:
                    task.cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

        for result in self.runner.run(all_of_them()):
            assert result is None or isinstance(result, DriverError | asyncio.CancelledError), result
        named = {task_id for task_id, _, _ in calls}
        untouched = {task_id: owner for task_id, owner in self.owners.items() if task_id not in named}
        found = {handle.task_id: handle.target for handle in self.composite.handles()}
        assert {task_id: owner for task_id, owner in found.items() if task_id not in named} == untouched
        self.owners = found

    @rule()
    def restart(self) -> None:
        handles = [Handle.loads(handle.dumps()) for handle in self.composite.handles()]
        self.composite = self.assembled()
        for handle in handles:
            self.runner.run(self.composite.adopt(handle))

    @invariant()
    def records_are_true(self) -> None:
        assert {handle.task_id: handle.target for handle in self.composite.handles()} == self.owners
        for task_id, owner in self.owners.items():
            assert self.composite.owner(task_id) is owner
            assert task_id in self.machines[owner].containers
            assert self.runner.run(self.composite.forward(task_id, HasState.state)) is TaskState.RUNNING

    def teardown(self) -> None:
        self.runner.close()


TestRecords = Records.TestCase
TestRecords.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
