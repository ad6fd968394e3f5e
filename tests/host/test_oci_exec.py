"""Further commands in a running container, on the machine's own runc."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.host.oci_lab import OneImage, backend, bundle_of, handle, shell
from zlayer_driver.errors import InvalidSpec, NotFound, TimedOut
from zlayer_driver.model import ExecResult, Exit, Handle
from zlayer_driver.readings import ExecOptions

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
    assert time.monotonic() - began < 2
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
