"""The contract of commands run in a container, whole or streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import pytest

from zlayer_driver import contract
from zlayer_driver.errors import NotFound, TimedOut
from zlayer_driver.model import Exit, Handle, Target
from zlayer_driver.readings import Channel, ExecEvent, ExecInput, ExecOptions, WindowSize
from zlayer_driver.testing.cases import DEADLINE_S, AbilityCases
from zlayer_driver.testing.subject import Subject


class ExecCases(AbilityCases):
    covers = frozenset({contract.CanExec})

    async def test_exec_tells_code_and_output(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanExec)
        handle = await subject.start(subject.runs("task"))
        failed = await subject.backend.exec(handle, subject.argv_exits(3), timeout_s=DEADLINE_S)
        printed = await subject.backend.exec(handle, subject.argv_prints("to out", "to err"), timeout_s=DEADLINE_S)
        assert (failed.exit, printed) == (Exit(3), type(printed)(Exit(0), b"to out", b"to err"))
        await subject.backend.destroy(handle)

    async def test_exec_takes_options(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanExec)
        handle = await subject.start(subject.runs("task"))
        options = ExecOptions(user="1:1", work_dir="/proc", env={"PROBE": "a value"})
        result = await subject.backend.exec(handle, subject.argv_tells(), timeout_s=DEADLINE_S, options=options)
        assert (result.exit, result.stdout) == (Exit(0), b"a value\n/proc\n1\n")
        await subject.backend.destroy(handle)

    async def test_exec_of_a_missing_command(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanExec)
        handle = await subject.start(subject.runs("task"))
        result = await subject.backend.exec(handle, ["/no/such/command"], timeout_s=DEADLINE_S)
        assert result.exit.code == 127
        await subject.backend.destroy(handle)

    async def test_exec_that_takes_too_long(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanExec)
        handle = await subject.start(subject.runs("task"))
        with pytest.raises(TimedOut):
            await subject.backend.exec(handle, subject.argv_blocks(), timeout_s=0.05)
        await subject.backend.destroy(handle)
        assert not await subject.remains()

    async def test_exec_in_nothing(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanExec)
        with pytest.raises(NotFound):
            await subject.backend.exec(
                Handle("nobody", Target.PRIMARY, subject.backend.name, {}), subject.argv_exits(0), timeout_s=DEADLINE_S
            )


class StreamExecCases(AbilityCases):
    covers = frozenset({contract.CanStreamExec})

    async def _events(
        self, subject: Subject, argv: Sequence[str], *, tty: bool = False, stdin: AsyncIterator[ExecInput] | None = None
    ) -> list[ExecEvent]:
        assert isinstance(subject.backend, contract.CanStreamExec)
        handle = await subject.start(subject.runs("task"))
        async with asyncio.timeout(DEADLINE_S):
            events = [event async for event in await subject.backend.stream_exec(handle, argv, tty=tty, stdin=stdin)]
        await subject.backend.destroy(handle)
        assert not await subject.remains()
        return events

    async def test_streamed_output_is_apart_and_the_code_comes_last(self, subject: Subject) -> None:
        *output, last = await self._events(subject, subject.argv_prints("to out", "to err"))
        assert last == ExecEvent(exit_code=0)
        told = {channel: b"".join(event.data for event in output if event.channel is channel) for channel in Channel}
        assert told == {Channel.STDOUT: b"to out", Channel.STDERR: b"to err"}
        assert not [event for event in output if event.exit_code is not None]

    async def test_streamed_exit_code(self, subject: Subject) -> None:
        assert (await self._events(subject, subject.argv_exits(3)))[-1] == ExecEvent(exit_code=3)

    async def test_streamed_command_that_does_not_exist(self, subject: Subject) -> None:
        assert (await self._events(subject, ["/no/such/command"]))[-1] == ExecEvent(exit_code=127)

    async def test_input_reaches_the_command(self, subject: Subject) -> None:
        *output, last = await self._events(subject, subject.argv_reads(), stdin=_inputs(b"a li", b"ne\n"))
        assert (b"".join(event.data for event in output), last.exit_code) == (b"got a line\n", 0)

    async def test_terminal(self, subject: Subject) -> None:
        *output, last = await self._events(subject, subject.argv_prints("seen", ""), tty=True, stdin=_inputs(WindowSize(24, 80)))
        assert (b"".join(event.data for event in output), last.exit_code) == (b"seen", 0)

    async def test_streamed_exec_that_is_left(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanStreamExec)
        handle = await subject.start(subject.runs("task"))
        events = await subject.backend.stream_exec(handle, subject.argv_blocks(), tty=False)
        reading = asyncio.create_task(_next(events))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        assert isinstance(events, AsyncGenerator)
        await events.aclose()
        await subject.backend.destroy(handle)
        assert not await subject.remains()

    async def test_streamed_exec_in_nothing(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanStreamExec)
        with pytest.raises(NotFound):
            await subject.backend.stream_exec(Handle("nobody", Target.PRIMARY, subject.backend.name, {}), subject.argv_exits(0), tty=False)


async def _inputs(*items: ExecInput) -> AsyncIterator[ExecInput]:
    for item in items:
        yield item


async def _next(events: AsyncIterator[ExecEvent]) -> ExecEvent:
    return await anext(events)
