"""The contract as test classes. A backend's test class inherits `Verbs` and a class for each ability that it has.

A subclass gives one fixture, ``subject``. `Verbs.test_every_ability_has_its_cases` fails where a backend has an ability whose cases the
class does not inherit, so that none goes unchecked.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest

from zlayer_driver import contract
from zlayer_driver.errors import DriverError, NotFound, PullFailed
from zlayer_driver.model import Auth, Exit, Handle, Health, PullPolicy, PullProgress, Resources, Target, TaskState
from zlayer_driver.readings import Channel, GuestOverlay, OverlayKind
from zlayer_driver.testing.cases import DEADLINE_S, AbilityCases, Evidence, ended
from zlayer_driver.testing.exec_cases import ExecCases, StreamExecCases
from zlayer_driver.testing.subject import Subject

__all__ = [
    "ControlCases",
    "ExecCases",
    "ImageCases",
    "LogCases",
    "OverlayCases",
    "PullCases",
    "SignalCases",
    "StreamExecCases",
    "SweepCases",
    "UsageCases",
    "Verbs",
]


class Verbs:
    """The six verbs. A support matrix can be made of the suites that say which class they try, and how."""

    backend: ClassVar[type]
    evidence: ClassVar[Evidence]

    def test_every_ability_has_its_cases(self, subject: Subject) -> None:
        inherited = [base for base in type(self).__mro__ if issubclass(base, AbilityCases) and base is not AbilityCases]
        covered = frozenset[type]().union(*(base.covers for base in inherited if "covers" in vars(base)))
        assert contract.abilities(subject.backend) - covered == frozenset()

    async def test_probe_finds_it_and_changes_nothing(self, subject: Subject) -> None:
        first = await subject.backend.probe()
        assert first.health is Health.HEALTHY
        assert await subject.backend.probe() == first
        assert not await subject.remains()

    @pytest.mark.parametrize("code", [0, 7, 255])
    async def test_exit_code(self, subject: Subject, code: int) -> None:
        handle = await subject.start(subject.exits("task", code))
        assert await ended(subject, handle) == Exit(code)
        await subject.backend.destroy(handle)

    async def test_output_is_apart_and_whole(self, subject: Subject) -> None:
        out, err = "one\ntwo\n", "three\nno end of line"
        handle = await subject.start(subject.prints("task", out, err))
        assert await ended(subject, handle) == Exit(0)
        assert subject.stdout_of("task").read_text() == out
        assert subject.stderr_of("task").read_text() == err
        await subject.backend.destroy(handle)

    async def test_any_number_may_wait_and_a_cancelled_waiter_disturbs_nobody(self, subject: Subject) -> None:
        handle = await subject.start(subject.runs("task"))
        waiters = [asyncio.create_task(ended(subject, handle)) for _ in range(3)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        await subject.backend.stop(handle, timeout_s=DEADLINE_S, signal="SIGKILL")
        assert await asyncio.gather(*waiters[1:]) == [Exit(137, 9)] * 2
        assert await ended(subject, handle) == Exit(137, 9)
        await subject.backend.destroy(handle)

    async def test_stop_asks_by_the_signal(self, subject: Subject) -> None:
        handle = await subject.start(subject.runs("task"))
        async with asyncio.timeout(DEADLINE_S):
            await subject.backend.stop(handle, timeout_s=2 * DEADLINE_S, signal="SIGTERM")
        assert await ended(subject, handle) == subject.death(15)
        await subject.backend.destroy(handle)

    async def test_stop_kills_what_does_not_listen(self, subject: Subject) -> None:
        handle = await subject.start(subject.runs("task", ignoring=["SIGTERM"]))
        await subject.backend.stop(handle, timeout_s=0.05, signal="SIGTERM")
        assert await ended(subject, handle) == Exit(137, 9)
        await subject.backend.destroy(handle)

    async def test_stop_of_an_ended_task_changes_nothing(self, subject: Subject) -> None:
        handle = await subject.start(subject.exits("task", 7))
        await ended(subject, handle)
        for _ in range(2):
            await subject.backend.stop(handle, timeout_s=0, signal="")
        assert await ended(subject, handle) == Exit(7)
        await subject.backend.destroy(handle)

    async def test_destroy_leaves_nothing_and_may_be_repeated(self, subject: Subject) -> None:
        running, over = await subject.start(subject.runs("running")), await subject.start(subject.exits("over", 0))
        await ended(subject, over)
        for handle in (running, over, running, over):
            await subject.backend.destroy(handle)
            await subject.backend.stop(handle, timeout_s=0, signal="")
        assert not await subject.remains()
        with pytest.raises(NotFound):
            await ended(subject, running)

    async def test_failed_start_leaves_nothing_and_may_be_repeated(self, subject: Subject) -> None:
        with pytest.raises(DriverError):
            await subject.backend.start(subject.cannot_start("task"))
        assert not await subject.remains()
        handle = await subject.start(subject.exits("task", 0))
        assert await ended(subject, handle) == Exit(0)
        await subject.backend.destroy(handle)

    async def test_cancelled_start_is_undone_by_destroy(self, subject: Subject) -> None:
        starting = asyncio.create_task(subject.start(subject.runs("task")))
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        await subject.backend.destroy(Handle("task", Target.PRIMARY, subject.backend.name, {}))
        assert not await subject.remains()

    async def test_repeated_start_takes_the_place_of_the_first(self, subject: Subject) -> None:
        await subject.start(subject.runs("task"))
        handle = await subject.start(subject.exits("task", 7))
        assert await ended(subject, handle) == Exit(7)
        await subject.backend.destroy(handle)
        assert not await subject.remains()

    async def test_successor_finds_a_running_task(self, subject: Subject) -> None:
        handle = await subject.start(subject.runs("task"))
        subject.backend = subject.successor()
        for _ in range(2):
            await subject.backend.recover(handle)
        await subject.backend.stop(handle, timeout_s=DEADLINE_S, signal="SIGTERM")
        assert await ended(subject, handle) == subject.death(15)
        await subject.backend.destroy(handle)
        assert not await subject.remains()

    async def test_successor_finds_what_ended_in_between(self, subject: Subject) -> None:
        handle = await subject.start(subject.exits("task", 7))
        await ended(subject, handle)
        subject.backend = subject.successor()
        await subject.backend.recover(handle)
        assert await ended(subject, handle) == Exit(7)
        await subject.backend.destroy(handle)

    async def test_recovery_of_a_gone_task_is_not_found(self, subject: Subject) -> None:
        handle = await subject.start(subject.exits("task", 0))
        await subject.backend.destroy(handle)
        subject.backend = subject.successor()
        with pytest.raises(NotFound):
            await subject.backend.recover(handle)
        assert not await subject.remains()

    async def test_tasks_do_not_disturb_each_other(self, subject: Subject) -> None:
        async def live(number: int) -> Exit:
            handle = await subject.start(subject.exits(f"task{number}", number))
            result = await ended(subject, handle)
            await subject.backend.destroy(handle)
            return result

        assert await asyncio.gather(*map(live, range(6))) == [Exit(number) for number in range(6)]
        assert not await subject.remains()


class SignalCases(AbilityCases):
    covers = frozenset({contract.CanSignal})

    async def test_signal_reaches_the_task(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanSignal)
        handle = await subject.start(subject.runs("task", ignoring=["SIGHUP"]))
        await subject.backend.signal(handle, "SIGHUP")
        await subject.backend.signal(handle, "usr1")
        assert await ended(subject, handle) == subject.death(10)
        await subject.backend.destroy(handle)

    async def test_word_that_is_no_signal(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanSignal)
        handle = await subject.start(subject.runs("task"))
        with pytest.raises(DriverError, match="SIGNIFICANT"):
            await subject.backend.signal(handle, "SIGNIFICANT")
        await subject.backend.destroy(handle)

    async def test_signal_to_nobody(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanSignal)
        with pytest.raises(NotFound):
            await subject.backend.signal(Handle("nobody", Target.PRIMARY, subject.backend.name, {}), "SIGTERM")


class SweepCases(AbilityCases):
    covers = frozenset({contract.CanSweep})

    async def test_sweep_leaves_whole_tasks_alone(self, subject: Subject) -> None:
        running, over = await subject.start(subject.runs("running")), await subject.start(subject.exits("over", 7))
        await ended(subject, over)
        subject.backend = subject.successor()
        assert isinstance(subject.backend, contract.CanSweep)
        await subject.backend.sweep()
        await subject.backend.sweep(orphans_after_s=0)
        assert await ended(subject, over) == Exit(7)
        await subject.backend.stop(running, timeout_s=0, signal="SIGKILL")
        assert await ended(subject, running) == Exit(137, 9)
        for handle in (running, over):
            await subject.backend.destroy(handle)
        assert not await subject.remains()


class ControlCases(AbilityCases):
    covers = frozenset({contract.CanPause, contract.CanUpdate, contract.HasState})

    async def test_state_follows_the_task(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.HasState)
        handle = await subject.start(subject.runs("task"))
        assert await subject.backend.state(handle) is TaskState.RUNNING
        await subject.backend.stop(handle, timeout_s=0, signal="SIGKILL")
        assert await subject.backend.state(handle) is TaskState.EXITED
        await subject.backend.destroy(handle)

    async def test_paused_task_goes_on(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanPause)
        handle = await subject.start(subject.runs("task"))
        await subject.backend.pause(handle)
        await subject.backend.resume(handle)
        await subject.backend.stop(handle, timeout_s=DEADLINE_S, signal="SIGTERM")
        assert await ended(subject, handle) == subject.death(15)
        await subject.backend.destroy(handle)

    async def test_update_of_limits(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanUpdate)
        handle = await subject.start(subject.runs("task"))
        assert not await subject.backend.update(handle, Resources(memory_bytes=64 << 20))
        await subject.backend.destroy(handle)


class LogCases(AbilityCases):
    covers = frozenset({contract.HasLogs})

    async def test_logs_are_lines_with_their_channel(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.HasLogs)
        handle = await subject.start(subject.prints("task", "one\ntwo\n", "three\n"))
        await ended(subject, handle)
        lines = await subject.backend.logs(handle)
        assert sorted((line.channel, line.message) for line in lines) == [
            (Channel.STDERR, "three"),
            (Channel.STDOUT, "one"),
            (Channel.STDOUT, "two"),
        ]
        assert await subject.backend.logs(handle, 1) == lines[-1:]
        assert not await subject.backend.logs(handle, 0)
        await subject.backend.destroy(handle)


class UsageCases(AbilityCases):
    covers = frozenset({contract.HasUsage})

    async def test_usage_counts(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.HasUsage)
        handle = await subject.start(subject.runs("task"))
        usage = await subject.backend.usage(handle)
        assert min(usage.cpu_us, usage.memory_bytes, usage.memory_limit_bytes) >= 0
        await subject.backend.destroy(handle)
        with pytest.raises(NotFound):
            await subject.backend.usage(handle)


class OverlayCases(AbilityCases):
    covers = frozenset({contract.CanAttachOverlay, contract.HasAddress})

    async def test_attached_address_is_the_tasks(self, subject: Subject) -> None:
        backend = subject.backend
        assert isinstance(backend, contract.CanAttachOverlay)
        assert isinstance(backend, contract.HasAddress)
        handle = await subject.start(subject.runs("task"))
        await backend.attach_overlay(handle, "10.9.0.7")
        assert await backend.address(handle) == "10.9.0.7"
        for _ in range(2):
            await backend.detach_overlay(handle)
        assert await backend.address(handle) is None
        await backend.destroy(handle)


class GuestOverlayCases(AbilityCases):
    covers = frozenset({contract.HasOverlayKind, contract.TakesOverlayConfig})

    async def test_pushed_identity(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.TakesOverlayConfig)
        handle = await subject.start(subject.runs("task"))
        await subject.backend.push_overlay(handle, GuestOverlay(address="10.9.0.8"))
        await subject.backend.destroy(handle)

    async def test_kind(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.HasOverlayKind)
        assert subject.backend.overlay_kind() in OverlayKind


class PullCases(AbilityCases):
    covers = frozenset({contract.CanPull, contract.CanListImages, contract.HasImage})

    async def test_pulled_image_is_listed_once(self, subject: Subject) -> None:
        backend = subject.backend
        assert isinstance(backend, contract.CanPull)
        assert isinstance(backend, contract.CanListImages)
        heard: list[PullProgress] = []
        for policy in (PullPolicy.IF_NOT_PRESENT, PullPolicy.ALWAYS, PullPolicy.NEVER):
            await backend.pull(subject.image, policy=policy, auth=None, report=heard.append)
        assert [record.reference for record in await backend.list_images()].count(subject.image) == 1
        if isinstance(backend, contract.HasImage):
            assert await backend.has_image(subject.image)
            assert not await backend.has_image(subject.missing_image)
        assert {step.image for step in heard} <= {subject.image}

    @pytest.mark.parametrize("policy", [PullPolicy.IF_NOT_PRESENT, PullPolicy.ALWAYS])
    async def test_image_that_is_nowhere(self, subject: Subject, policy: PullPolicy) -> None:
        assert isinstance(subject.backend, contract.CanPull)
        with pytest.raises(PullFailed, match=r".*") as caught:
            await subject.backend.pull(subject.missing_image, policy=policy, auth=Auth("somebody", "hush hush"))
        assert "hush hush" not in str(caught.value)

    async def test_policy_never_asks_nobody(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanPull)
        with pytest.raises(DriverError):
            await subject.backend.pull(subject.image, policy=PullPolicy.NEVER, auth=None)


class ImageCases(AbilityCases):
    covers = frozenset({contract.CanRemoveImage, contract.CanTagImage, contract.CanInspectImage, contract.CanPruneImages})

    async def test_tag_inspect_and_remove(self, subject: Subject) -> None:
        backend = subject.backend
        assert isinstance(backend, contract.CanPull)
        assert isinstance(backend, contract.CanTagImage)
        assert isinstance(backend, contract.CanInspectImage)
        assert isinstance(backend, contract.CanRemoveImage)
        await backend.pull(subject.image, policy=PullPolicy.ALWAYS, auth=None)
        await backend.tag_image(subject.image, "example.org/tagged:v1")
        assert (await backend.inspect_image("example.org/tagged:v1")).os
        for image in ("example.org/tagged:v1", subject.image):
            await backend.remove_image(image, force=False)
            with pytest.raises(NotFound):
                await backend.inspect_image(image)
            with pytest.raises(NotFound):
                await backend.remove_image(image, force=False)

    async def test_prune_takes_what_nobody_uses(self, subject: Subject) -> None:
        backend = subject.backend
        assert isinstance(backend, contract.CanPull)
        assert isinstance(backend, contract.CanPruneImages)
        await backend.pull(subject.image, policy=PullPolicy.ALWAYS, auth=None)
        assert subject.image in (await backend.prune_images()).deleted
        assert subject.image not in (await backend.prune_images()).deleted
