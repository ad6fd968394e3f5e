"""What the recordings of the reference do not show of the composite: cancellation, concurrency, restarts, abilities that are not there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from zlayer_driver.backends.fake import FakeBackend, Machine
from zlayer_driver.composite import Composite
from zlayer_driver.contract import Backend, CanPause, CanStreamExec, CanTagImage
from zlayer_driver.errors import CacheBusy, CreateFailed, DriverError, InternalError, NotFound, PullFailed, RouteToPeer, Unsupported
from zlayer_driver.model import (
    OS,
    Exit,
    Fingerprint,
    Handle,
    Health,
    ImageFacts,
    Isolation,
    PullPolicy,
    PullProgress,
    Target,
    TaskSpec,
)
from zlayer_driver.readings import LogOptions

FALLEN = list[tuple[Target, Target, str]]


def no_facts(image: str) -> ImageFacts:
    return ImageFacts()


class Node:
    """A composite over fakes, whose machines stay when it is made anew."""

    def __init__(self, *targets: Target, native_os: OS = OS.DARWIN, fallback: tuple[Target, ...] = ()) -> None:
        self.machines = {target: Machine() for target in (Target.PRIMARY, *targets)}
        self.native_os = native_os
        self.fallback = fallback
        self.fallen: FALLEN = []
        self.facts: dict[str, ImageFacts] = {}
        self.composite = self.restarted()

    def restarted(self) -> Composite:
        return Composite(
            {target: FakeBackend(machine, name=f"fake-{target}") for target, machine in self.machines.items()},
            native_os=self.native_os,
            facts=lambda image: self.facts.get(image, ImageFacts()),
            fallback=self.fallback,
            on_fallback=self._note,
        )

    def _note(self, spec: TaskSpec, failed: Target, taken: Target, error: DriverError) -> None:
        self.fallen.append((failed, taken, error.message))

    def containers(self) -> set[tuple[Target, str]]:
        return {(target, task) for target, machine in self.machines.items() for task in machine.containers}


def spec(task_id: str, *, runtime: Isolation | None = None, image: str = "docker.io/library/app:v1", **labels: str) -> TaskSpec:
    told = {f"fake.{key}": value for key, value in {"run_for": "forever", **labels}.items()}
    return TaskSpec(id=task_id, name=task_id, service="web", image=image, runtime=runtime, labels=told)


class Bare:
    """A backend of the six verbs and nothing else, whose start blocks until it is told to go on."""

    name = "bare"

    def __init__(self) -> None:
        self.starting = asyncio.Event()
        self.go_on = asyncio.Event()
        self.destroying = asyncio.Event()
        self.destroyed: list[Handle] = []
        self.destroy_error: DriverError | None = None

    async def probe(self) -> Fingerprint:
        return Fingerprint(Health.HEALTHY)

    async def start(self, spec: TaskSpec) -> Mapping[str, Any]:
        self.starting.set()
        await self.go_on.wait()
        return {}

    async def recover(self, handle: Handle) -> None: ...

    async def wait(self, handle: Handle) -> Exit:
        return Exit(0)

    async def stop(self, handle: Handle, *, timeout_s: float, signal: str) -> None: ...

    async def destroy(self, handle: Handle) -> None:
        self.destroyed.append(handle)
        self.destroying.set()
        await self.go_on.wait()
        if self.destroy_error:
            raise self.destroy_error


def bare_node(backend: Backend) -> Composite:
    return Composite({Target.PRIMARY: backend}, native_os=OS.LINUX, facts=no_facts)


async def test_life_of_a_task() -> None:
    node = Node()
    handle = await node.composite.create(spec("task"))
    assert (handle.target, handle.backend, node.composite.owner("task")) == (Target.PRIMARY, "fake-primary", Target.PRIMARY)
    await node.composite.stop("task", timeout_s=1)
    assert await node.composite.wait("task") == Exit(143, 15)
    await node.composite.destroy("task")
    assert not node.containers()
    with pytest.raises(NotFound, match="no record"):
        await node.composite.wait("task")


async def test_two_tasks_on_two_targets_do_not_see_each_other() -> None:
    node = Node(Target.VZ)

    async def live(task_id: str, runtime: Isolation, target: Target) -> None:
        for round_ in range(20):
            await node.composite.create(spec(task_id, runtime=runtime, stdout=f"{task_id} {round_}"))
            assert node.composite.owner(task_id) is target
            chunks = [chunk async for chunk in await node.composite.stream_logs(task_id, LogOptions())]
            assert [chunk.data for chunk in chunks] == [f"{task_id} {round_}\n".encode()]
            await node.composite.destroy(task_id)
            with pytest.raises(NotFound):
                node.composite.owner(task_id)

    await asyncio.gather(live("one", Isolation.SANDBOX, Target.PRIMARY), live("two", Isolation.VZ, Target.VZ))
    assert not node.containers()


async def test_creates_of_one_id_wait_for_each_other() -> None:
    backend = Bare()
    composite = bare_node(backend)
    first = asyncio.create_task(composite.create(spec("task")))
    await backend.starting.wait()
    backend.starting.clear()
    second = asyncio.create_task(composite.create(spec("task")))
    other = asyncio.create_task(composite.create(spec("other")))
    await backend.starting.wait()  # by the other id; the same id waits
    with pytest.raises(NotFound):
        composite.owner("task")
    backend.go_on.set()
    await asyncio.gather(first, second, other)
    assert {handle.task_id for handle in composite.handles()} == {"task", "other"}


async def cancelled_create(composite: Composite, backend: Bare) -> None:
    """A create that is cancelled while its backend is at work."""
    creating = asyncio.create_task(composite.create(spec("task")))
    await backend.starting.wait()
    creating.cancel()
    backend.go_on.set()
    await asyncio.wait([creating])
    assert creating.cancelled()


async def test_cancelled_create_is_undone_and_leaves_no_record() -> None:
    backend = Bare()
    composite = bare_node(backend)
    await cancelled_create(composite, backend)
    assert backend.destroyed == [Handle("task", Target.PRIMARY, "bare", {})]
    assert composite.handles() == ()


async def test_cancelled_create_whose_undoing_fails_is_still_cancelled() -> None:
    backend = Bare()
    backend.destroy_error = InternalError("it will not go")
    composite = bare_node(backend)
    await cancelled_create(composite, backend)
    assert composite.handles() == ()


async def test_cancelled_recreate_leaves_the_earlier_container_alone() -> None:
    node = Node()
    first = await node.composite.create(spec("task"))
    creating = asyncio.create_task(node.composite.create(spec("task", start_blocks="true")))
    for _ in range(10):
        await asyncio.sleep(0)
    creating.cancel()
    await asyncio.wait([creating])
    assert node.composite.handles() == (first,)
    assert node.containers() == {(Target.PRIMARY, "task")}


async def test_cancelled_destroy_goes_on_to_its_end() -> None:
    backend = Bare()
    composite = bare_node(backend)
    backend.go_on.set()
    await composite.create(spec("task"))
    backend.go_on.clear()
    destroying = asyncio.create_task(composite.destroy("task"))
    await backend.destroying.wait()
    for _ in range(2):
        destroying.cancel()
        await asyncio.sleep(0)
        assert not destroying.done()
    backend.go_on.set()
    await asyncio.wait([destroying])
    assert composite.handles() == ()


async def test_chain_of_fallbacks_keeps_the_first_error() -> None:
    node = Node(Target.DELEGATE, Target.VZ, fallback=(Target.DELEGATE,))
    node.facts["docker.io/library/app:v1"] = ImageFacts(OS.DARWIN)
    with pytest.raises(CreateFailed, match="no room") as caught:
        await node.composite.create(spec("task", start_error="no room"))
    assert isinstance(caught.value.__cause__, CreateFailed)
    assert node.fallen == [(Target.PRIMARY, Target.VZ, caught.value.message), (Target.VZ, Target.DELEGATE, caught.value.message)]
    assert node.composite.handles() == ()


async def test_restart_takes_back_what_the_handles_name() -> None:
    node = Node(Target.VZ)
    handles = [await node.composite.create(spec("one")), await node.composite.create(spec("two", runtime=Isolation.VZ))]
    composite = node.restarted()
    for handle in handles:
        await composite.adopt(Handle.loads(handle.dumps()))
    assert composite.owner("two") is Target.VZ
    assert set(map(Handle.dumps, composite.handles())) == set(map(Handle.dumps, handles))


async def test_handle_of_a_backend_that_is_gone() -> None:
    node = Node()
    for handle in (Handle("task", Target.VZ, "fake-vz", {}), Handle("task", Target.PRIMARY, "another", {})):
        with pytest.raises(NotFound, match=handle.backend):
            await node.composite.adopt(handle)
    assert node.composite.handles() == ()


async def test_purge_removes_what_has_no_record() -> None:
    node = Node(Target.VZ)
    await node.composite.create(spec("task", runtime=Isolation.VZ))
    await node.restarted().purge("task")
    assert not node.containers()


async def test_missing_ability() -> None:
    backend = Bare()
    backend.go_on.set()
    composite = bare_node(backend)
    await composite.create(spec("task"))
    with pytest.raises(Unsupported, match="bare on target primary cannot pause"):
        await composite.forward("task", CanPause.pause)
    with pytest.raises(Unsupported):
        await composite.forward("task", CanStreamExec.stream_exec, ["sh"], tty=True)
    with pytest.raises(Unsupported):
        await composite.stream_usage("task")
    with pytest.raises(Unsupported):
        await composite.list_images()
    with pytest.raises(Unsupported):
        await composite.first(CanTagImage.tag_image, "a:1", "b:2")
    assert composite.image_store() is None


async def test_pull_tells_a_first_and_a_last_step_and_learns_the_facts() -> None:
    node = Node(Target.VZ)
    node.facts["docker.io/library/app:v1"] = ImageFacts(OS.DARWIN, marker="vz")
    heard: list[PullProgress] = []
    await node.composite.pull("docker.io/library/app:v1", policy=PullPolicy.IF_NOT_PRESENT, auth=None, report=heard.append)
    assert [step.phase for step in heard] == ["resolve", "download", "download", "done"]
    node.facts.clear()
    handle = await node.composite.create(spec("task", image="app:v1"))
    assert handle.target is Target.VZ


async def test_a_target_that_keeps_an_image_is_told_of() -> None:
    node, image = Node(Target.VZ), "docker.io/library/app:v1"
    missed: list[tuple[Target, str]] = []
    await node.composite.pull(image, policy=PullPolicy.IF_NOT_PRESENT, auth=None)
    await node.composite.create(spec("task", runtime=Isolation.VZ))
    await node.composite.remove_image(image, force=False, on_miss=lambda target, error: missed.append((target, error.kind)))
    assert missed == [(Target.VZ, "InvalidSpec")]
    assert [record.reference for record in await node.composite.list_images()] == [image]
    await node.composite.destroy("task")
    await node.composite.remove_image(image, force=False, on_miss=lambda target, error: missed.append((target, error.kind)))
    assert len(missed) == 1


async def test_pull_that_the_primary_cannot_manage() -> None:
    node = Node(Target.VZ)
    with pytest.raises(PullFailed):
        await node.composite.pull("fake.invalid/app:v1", policy=PullPolicy.ALWAYS, auth=None)


async def test_busy_cache_is_no_fault_of_the_task() -> None:
    def busy(image: str) -> ImageFacts:
        raise CacheBusy("/cache", "it is written to")

    composite = Composite({Target.PRIMARY: FakeBackend()}, native_os=OS.LINUX, facts=busy)
    assert (await composite.create(spec("task"))).target is Target.PRIMARY


async def test_foreign_system_is_for_another_node() -> None:
    node = Node(native_os=OS.LINUX)
    node.facts["docker.io/library/app:v1"] = ImageFacts(OS.WINDOWS)
    with pytest.raises(RouteToPeer, match="windows"):
        await node.composite.create(spec("task"))
    assert not node.containers()


def test_node_without_a_primary() -> None:
    with pytest.raises(InternalError):
        Composite({Target.VZ: FakeBackend()}, native_os=OS.DARWIN, facts=no_facts)
