"""One container on the machine's own runc and conmon: start, output, end, stop, removal."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from tests.host.oci_lab import OneImage, backend, bundle_of, handle, shell
from zlayer_driver.errors import CreateFailed, InvalidSpec, NotFound
from zlayer_driver.model import Exit, Resources

pytestmark = [pytest.mark.needs("linux", "root", "runc", "conmon", "busybox"), pytest.mark.usefixtures("no_fd_leak")]


async def run(root: Path, images: OneImage, script: str, **changes: object) -> Exit:
    oci = backend(root, images)
    task = handle("one", await oci.start(shell("one", script, **changes)))
    try:
        return await oci.wait(task)
    finally:
        await oci.destroy(task)


@pytest.mark.parametrize(
    ("script", "end"),
    [
        ("exit 0", Exit(0)),
        ("exit 7", Exit(7)),
        ("exit 137", Exit(137)),
        ("kill -KILL $$; kill -9 -1; while :; do :; done & exec sleep 0", Exit(0)),
    ],
)
async def test_exit_codes(root: Path, images: OneImage, script: str, end: Exit) -> None:
    assert await run(root, images, script) == end


async def test_a_kernel_that_tells_keeps_exit_and_signal_apart(root: Path, images: OneImage) -> None:
    oci = backend(root, images)
    task = handle("one", await oci.start(shell("one", "exec sleep 1000")))
    await oci.signal(task, "KILL")
    assert await oci.wait(task) == Exit(137, 9)
    await oci.destroy(task)


async def test_out_of_memory(root: Path, images: OneImage) -> None:
    limits = Resources(memory_bytes=32 << 20)
    assert await run(root, images, "exec dd if=/dev/zero of=/dev/null bs=128M count=1", resources=limits) == Exit(137, 9, oom_killed=True)


async def test_nothing_is_kept_in_memory_by_the_name_of_a_container(root: Path, images: OneImage) -> None:
    """Objects can be counted; the bytes of a heap tell little. The first lives fill what is filled once."""

    async def life(name: str) -> int:
        oci = backend(root, images)
        await oci.destroy(handle(name, await oci.start(shell(name, "exit 0"))))
        gc.collect()
        return sum(isinstance(thing, re.Pattern) for thing in gc.get_objects())

    counts = [await life(f"life-{number}") for number in range(5)]
    assert counts[2:] == [counts[2]] * 3


async def test_output_is_whole_and_apart(root: Path, images: OneImage, tmp_path: Path) -> None:
    script = 'awk \'BEGIN { for (i = 0; i < 20000; i++) { print "out", i; print "err", i > "/dev/stderr" } }\''
    with reading(tmp_path / "out") as out, reading(tmp_path / "err") as err:
        end = await run(root, images, script, stdout_path=str(tmp_path / "out"), stderr_path=str(tmp_path / "err"))
    assert end == Exit(0)
    assert b"".join(out) == b"".join(b"out %d\n" % number for number in range(20000))
    assert b"".join(err) == b"".join(b"err %d\n" % number for number in range(20000))


async def test_fifos_without_a_reader_do_not_hold_the_start(root: Path, images: OneImage, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    oci = backend(root, images)
    script = "i=0; while [ $i -lt 20000 ]; do echo line $i || exit 9; i=$((i+1)); done"
    task = handle("one", await oci.start(shell("one", script, stdout_path=str(tmp_path / "out"))))
    with reading(tmp_path / "out", make=False) as out:
        assert await oci.wait(task) == Exit(0)
        await oci.destroy(task)
    assert b"".join(out) == b"".join(b"line %d\n" % number for number in range(20000))


async def test_stop_by_signal_then_by_force(root: Path, images: OneImage) -> None:
    oci = backend(root, images)
    soft = handle("soft", await oci.start(shell("soft", "trap 'exit 3' TERM; while :; do sleep 0.01; done")))
    hard = handle("hard", await oci.start(shell("hard", "trap '' TERM; while :; do sleep 0.01; done")))
    await oci.stop(soft, timeout_s=30, signal="")
    assert await oci.wait(soft) in (Exit(3), Exit(143, 15))
    began = time.monotonic()
    await oci.stop(hard, timeout_s=0.3, signal="SIGTERM")
    assert 0.3 <= time.monotonic() - began < 3
    assert await oci.wait(hard) == Exit(137, 9)
    for task in (soft, hard):
        await oci.destroy(task)
        await oci.destroy(task)
        await oci.stop(task, timeout_s=1, signal="")


@pytest.mark.parametrize(("stop_signal", "end"), [("SIGUSR1", Exit(1)), ("10", Exit(1)), ("SIGNONSENSE", Exit(2)), ("", Exit(2))])
async def test_the_images_stop_signal(root: Path, images: OneImage, tmp_path: Path, stop_signal: str, end: Exit) -> None:
    os.mkfifo(tmp_path / "out")
    oci = backend(root, OneImage(images.root, stop_signal=stop_signal))
    script = "trap 'exit 1' USR1; trap 'exit 2' TERM; echo ready; while :; do sleep 1000 & wait $!; done"
    task = handle("one", await oci.start(shell("one", script, stdout_path=str(tmp_path / "out"))))
    with (tmp_path / "out").open() as out:
        assert out.readline() == "ready\n"
    await oci.stop(task, timeout_s=30, signal="")
    assert await oci.wait(task) == end
    await oci.destroy(task)


async def test_another_instance_takes_over(root: Path, images: OneImage, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    first = backend(root, images)
    script = "trap '' INT; echo ready; exec sleep 1000"
    task = handle("one", await first.start(shell("one", script, stdout_path=str(tmp_path / "out"))))
    with (tmp_path / "out").open() as out:
        assert out.readline() == "ready\n"
    second = backend(root, images)
    await second.recover(task)
    waits = asyncio.gather(first.wait(task), first.wait(task), second.wait(task))
    await second.stop(task, timeout_s=0, signal="INT")
    assert list(await waits) == [Exit(137, 9)] * 3
    late = backend(root, images)
    await late.recover(task)
    assert await late.wait(task) == Exit(137, 9)
    await second.destroy(task)
    with pytest.raises(NotFound):
        await backend(root, images).recover(task)
    await first.destroy(task)
    await late.destroy(task)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"command": "/bin/nope", "args": ()}, "command '/bin/nope' is not in image"),
        ({"command": "nope", "args": ()}, "command 'nope' is not in image"),
        ({"command": "/srv/mark", "args": ()}, "may not be executed"),
        ({"user": "nobody"}, "user 'nobody' is not in the image's /etc/passwd"),
    ],
)
async def test_what_cannot_start_says_why_in_one_sentence(root: Path, images: OneImage, changes: dict[str, object], text: str) -> None:
    oci = backend(root, images)
    with pytest.raises((CreateFailed, InvalidSpec)) as caught:
        await oci.start(shell("one", "true", **changes))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not bundle_of(root, "one").dir.exists()


@contextmanager
def reading(path: Path, *, make: bool = True) -> Iterator[list[bytes]]:
    """What is read from a FIFO by its end, once the block is over."""
    if make:
        os.mkfifo(path)
    chunks: list[bytes] = []
    reader = Thread(target=lambda: chunks.append(path.read_bytes()))
    reader.start()
    yield chunks
    reader.join(30)
    assert not reader.is_alive()
