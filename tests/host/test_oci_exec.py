"""Further commands in a running container, on the machine's own runc."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.host.oci_lab import OneImage, backend, bundle_of, handle, shell
from zlayer_driver.errors import InvalidSpec, NotFound, TimedOut
from zlayer_driver.model import ExecResult, Exit, Handle
from zlayer_driver.readings import Channel, ExecInput, ExecOptions, WindowSize

pytestmark = [pytest.mark.needs("linux", "root", "runc", "conmon", "busybox"), pytest.mark.usefixtures("no_fd_leak")]


async def execute(
    root: Path, images: OneImage, argv: list[str], *, timeout_s: float = 30, options: ExecOptions | None = None, **changes: object
) -> ExecResult:
    oci = backend(root, images)
    task = handle("one", await oci.start(shell("one", "exec sleep 1000", **changes)))
    try:
        return await oci.exec(task, argv, timeout_s=timeout_s, options=options)
    finally:
        assert not list(bundle_of(root, "one").dir.glob("exec-*"))
        await oci.destroy(task)


async def test_code_and_both_streams(root: Path, images: OneImage) -> None:
    result = await execute(root, images, ["sh", "-c", "printf out; printf err >&2; exit 3"])
    assert result == ExecResult(Exit(3), b"out", b"err")


async def test_it_runs_as_the_container_does(root: Path, images: OneImage) -> None:
    argv = ["sh", "-c", "echo $(id -u) $(pwd) $A $B"]
    spec: dict[str, Any] = {"user": "worker", "work_dir": "/srv", "env": {"A": "a"}}
    assert (await execute(root, images, argv, **spec)).stdout == b"1000 /srv a\n"
    options = ExecOptions(user="root", work_dir="/tmp", env={"B": "b"})
    assert (await execute(root, images, argv, options=options, **spec)).stdout == b"0 /tmp a b\n"


async def test_large_output_is_whole(root: Path, images: OneImage) -> None:
    script = "awk 'BEGIN { for (i = 0; i < 200000; i++) print i }'"
    assert (await execute(root, images, ["sh", "-c", script])).stdout == b"".join(b"%d\n" % number for number in range(200000))


@pytest.mark.parametrize(("argv", "code"), [(["/no/such"], 127), (["no-such"], 127), (["/srv/mark"], 126)])
async def test_what_cannot_be_run_is_a_code(root: Path, images: OneImage, argv: list[str], code: int) -> None:
    result = await execute(root, images, argv)
    assert result.exit == Exit(code)
    assert result.stdout == b""
    assert argv[0].encode() in result.stderr


async def test_a_signal_death(root: Path, images: OneImage) -> None:
    assert (await execute(root, images, ["sh", "-c", "kill -TERM $$"])).exit.code == 143


async def test_it_ends_when_its_time_is_over(root: Path, images: OneImage) -> None:
    oci = backend(root, images)
    task = handle("one", await oci.start(shell("one", "exec sleep 1000")))
    began = time.monotonic()
    with pytest.raises(TimedOut):
        await oci.exec(task, ["sleep", "999"], timeout_s=0.3)
    assert time.monotonic() - began < 10
    listed = await oci.exec(task, ["sh", "-c", "cat /proc/[0-9]*/cmdline"], timeout_s=30)
    assert b"sleep\0999" not in listed.stdout
    await oci.destroy(task)


async def test_nothing_of_ours_is_inherited(root: Path, images: OneImage) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    result = await execute(root, images, ["sh", "-c", "ls /proc/self/fd"])
    os.close(reader)
    os.close(writer)
    assert result.stdout.split() == [b"0", b"1", b"2", b"3"]  # the last is ls's own


async def test_a_command_needs_a_name_and_a_container(root: Path, images: OneImage) -> None:
    with pytest.raises(InvalidSpec):
        await execute(root, images, [])
    with pytest.raises(NotFound):
        await backend(root, images).exec(Handle.loads(handle("gone", {}).dumps()), ["true"], timeout_s=1)


async def test_an_ended_container_takes_no_command(root: Path, images: OneImage) -> None:
    oci = backend(root, images)
    task = handle("one", await oci.start(shell("one", "true")))
    await oci.wait(task)
    with pytest.raises(NotFound):
        await oci.exec(task, ["true"], timeout_s=10)
    await oci.destroy(task)


async def fed(*parts: ExecInput) -> AsyncIterator[ExecInput]:
    for part in parts:
        yield part


async def streamed(root: Path, images: OneImage, argv: list[str], *given: ExecInput, tty: bool = False) -> tuple[bytes, bytes, int | None]:
    oci = backend(root, images)
    task = handle("one", await oci.start(shell("one", "exec sleep 1000")))
    try:
        events = [event async for event in await oci.stream_exec(task, argv, tty=tty, stdin=fed(*given) if given else None)]
    finally:
        assert not list(bundle_of(root, "one").dir.glob("exec-*"))
        await oci.destroy(task)
    assert [event.exit_code for event in events[:-1]] == [None] * (len(events) - 1)
    out, err = (b"".join(event.data for event in events if event.channel is channel) for channel in Channel)
    return out, err, events[-1].exit_code


async def test_a_session_has_input_both_outputs_and_a_code(root: Path, images: OneImage) -> None:
    argv = ["sh", "-c", "cat; printf err >&2; exit 5"]
    assert await streamed(root, images, argv, b"one ", b"two") == (b"one two", b"err", 5)
    assert await streamed(root, images, argv) == (b"", b"err", 5)


async def test_a_session_carries_much(root: Path, images: OneImage) -> None:
    data = bytes(range(256)) * 16384
    assert await streamed(root, images, ["cat"], *(data[at : at + 65536] for at in range(0, len(data), 65536))) == (data, b"", 0)


async def test_a_command_that_does_not_read_its_input(root: Path, images: OneImage) -> None:
    assert (await streamed(root, images, ["true"], *[b"x" * 65536] * 64))[2] == 0


async def test_a_session_with_a_terminal(root: Path, images: OneImage) -> None:
    script = "test -t 0 && test -t 1 && stty size; read line; echo got $line; cat"
    out, err, code = await streamed(root, images, ["sh", "-c", script], WindowSize(rows=33, columns=77), b"word\n", tty=True)
    assert (err, code) == (b"", 0)
    assert b"got word\r\n" in out


@pytest.mark.parametrize("tty", [False, True])
async def test_a_session_of_a_missing_command(root: Path, images: OneImage, tty: bool) -> None:
    assert (await streamed(root, images, ["/no/such"], tty=tty))[2] == 127


@pytest.mark.parametrize("tty", [False, True])
async def test_a_session_that_is_left_ends_its_command(root: Path, images: OneImage, tty: bool) -> None:
    oci = backend(root, images)
    task = handle("one", await oci.start(shell("one", "exec sleep 1000")))
    events = await oci.stream_exec(task, ["sh", "-c", "echo begun; exec sleep 999"], tty=tty)
    assert b"begun" in (await anext(events)).data
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    listed = await oci.exec(task, ["sh", "-c", "cat /proc/[0-9]*/cmdline"], timeout_s=30)
    assert b"sleep\0999" not in listed.stdout
    await oci.destroy(task)
