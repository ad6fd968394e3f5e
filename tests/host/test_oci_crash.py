"""The driver dies, or a step fails, at any moment: nothing is left behind, and no task is run twice."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.host.oci_lab import OneImage, backend, bundle_of, handle, remains, shell
from zlayer_driver.backends.oci_steps import STEPS
from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.backends.supervised.making import Making, Step
from zlayer_driver.errors import CreateFailed, NotFound, StartFailed
from zlayer_driver.host import gate as opener
from zlayer_driver.host.processes import reap, spawn
from zlayer_driver.model import Exit, Mount, TaskSpec, TaskState

pytestmark = [pytest.mark.needs("linux", "root", "runc", "conmon", "busybox"), pytest.mark.usefixtures("no_fd_leak")]

NAMES = [step.name for step in STEPS]
AT_THE_GATE = "gate"  # within the last step, when the program that lets the container run has just been spawned


def replaced(name: str, do: Callable[[Making], Awaitable[None]]) -> tuple[Step, ...]:
    return tuple(dataclasses.replace(step, do=do) if step.name == name else step for step in STEPS)


@pytest.mark.parametrize("after", [False, True], ids=["instead", "after"])
@pytest.mark.parametrize("name", NAMES)
async def test_a_step_that_fails_leaves_nothing(root: Path, images: OneImage, name: str, after: bool) -> None:
    step = STEPS[NAMES.index(name)]

    async def fail(making: Making) -> None:
        if after:
            await step.do(making)
        raise StartFailed(making.bundle.id, "as the test asks")

    with pytest.raises(StartFailed, match="as the test asks"):
        await backend(root, images, steps=replaced(name, fail)).start(shell("one", "exec sleep 1000"))
    assert remains(root) == []


@pytest.mark.parametrize("name", NAMES)
async def test_a_start_that_is_cancelled_leaves_nothing(root: Path, images: OneImage, name: str) -> None:
    step, begun = STEPS[NAMES.index(name)], asyncio.Event()

    async def block(making: Making) -> None:
        await step.do(making)
        begun.set()
        await asyncio.Event().wait()

    start = asyncio.create_task(backend(root, images, steps=replaced(name, block)).start(shell("one", "exec sleep 1000")))
    await begun.wait()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert remains(root) == []


DRIVER = """
import asyncio, os, sys
from pathlib import Path
from tests.host import test_oci_crash
asyncio.run(test_oci_crash.drive(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
"""


async def drive(root: Path, layers: Path, stop_in: str, gate: int) -> None:
    """The driver that is killed: starts a task up to a step, says so, and waits for its death with the step done."""

    def halting(step: Step) -> Step:
        async def do(making: Making) -> None:
            await step.do(making)
            os.write(gate, b".")
            await asyncio.Event().wait()

        return dataclasses.replace(step, do=do) if step.name == stop_in else step

    async def halting_at_the_gate(_child: object) -> int:
        os.write(gate, b".")
        return await asyncio.Event().wait()

    if stop_in == AT_THE_GATE:
        vars(opener)["reap"] = halting_at_the_gate
    oci = backend(root, OneImage(layers), steps=tuple(map(halting, STEPS)))
    await oci.start(counting(root))
    assert stop_in != AT_THE_GATE
    os.write(gate, b".")
    await asyncio.Event().wait()


def counting(root: Path) -> TaskSpec:
    """A task that leaves a line for each time that it runs, and then runs on."""
    return shell("one", "echo ran >> /host/runs; exec sleep 1000", mounts=(Mount(source=str(root), target="/host"),))


def runs(root: Path) -> int:
    return (root / "runs").read_text().count("ran") if (root / "runs").exists() else 0


async def killed_driver(root: Path, layers: Path, stop_in: str) -> None:
    reader, writer = os.pipe()
    child = spawn(
        [sys.executable, "-c", DRIVER, str(root), str(layers), stop_in, str(writer)],
        stderr=subprocess.DEVNULL,
        pass_fds=(writer,),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    os.close(writer)
    assert await asyncio.to_thread(os.read, reader, 1) == b"."
    os.close(reader)
    child.kill()
    assert await reap(child) == -signal.SIGKILL


@pytest.mark.parametrize("name", [*NAMES, AT_THE_GATE, "none"])
async def test_a_repeated_start_after_a_kill_runs_the_task_once(root: Path, images: OneImage, name: str) -> None:
    await killed_driver(root, images.root, name)
    oci = backend(root, images)
    task = handle("one", await oci.start(counting(root)))
    await oci.signal(task, "KILL")
    assert await oci.wait(task) == Exit(137, 9)
    assert runs(root) <= 1
    await oci.destroy(task)
    assert remains(root) == []


async def test_a_container_runs_though_its_driver_dies_at_the_gate(root: Path, images: OneImage) -> None:
    """What lets it run outlives the driver, so whoever comes next finds a task that runs, not one that was never let through."""
    await killed_driver(root, images.root, AT_THE_GATE)
    oci = backend(root, images)
    await oci.sweep()
    task = handle("one", await oci.start(counting(root)))
    assert await oci.state(task) is TaskState.RUNNING
    await oci.exec(task, ["true"], timeout_s=10)
    await oci.destroy(task)
    assert runs(root) == 1


@pytest.mark.parametrize("name", NAMES[:-1])
async def test_a_sweep_takes_what_is_half_made(root: Path, images: OneImage, name: str) -> None:
    await killed_driver(root, images.root, name)
    assert remains(root) != []
    await backend(root, images).sweep()
    assert remains(root) == []
    assert runs(root) == 0


async def test_an_orphan_is_removed_when_its_time_has_come(root: Path, images: OneImage) -> None:
    await killed_driver(root, images.root, "none")
    oci = backend(root, images)
    await oci.sweep()
    await oci.sweep(orphans_after_s=3600)
    assert remains(root) != []
    await oci.sweep(orphans_after_s=0)
    assert remains(root) == []


async def test_a_container_that_somebody_has_is_no_orphan(root: Path, images: OneImage) -> None:
    """Somebody is any process of the machine: the one that started it, or one that took it back."""
    first = backend(root, images)
    task = handle("one", await first.start(shell("one", "exec sleep 1000")))
    await backend(root, images).sweep(orphans_after_s=0)
    heir = backend(root, images)
    await heir.recover(task)
    first._forget("one")
    await first.sweep(orphans_after_s=0)
    assert await heir.state(task) is TaskState.RUNNING
    heir._forget("one")
    await first.sweep(orphans_after_s=0)
    with pytest.raises(NotFound):
        await heir.recover(task)


async def test_what_is_being_removed_as_an_orphan_cannot_be_recovered(root: Path, images: OneImage) -> None:
    first = backend(root, images)
    task = handle("one", await first.start(shell("one", "exec sleep 1000")))
    first._forget("one")
    claim = bundle_of(root, "one").claim_unkept()
    assert claim is not None
    with pytest.raises(NotFound, match="nobody had asked for it"):
        await backend(root, images).recover(task)
    os.close(claim)
    await first.destroy(task)


async def test_a_full_disk_is_an_error_of_ours(root: Path, images: OneImage) -> None:
    async def full(_: Making) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/state/file")

    with pytest.raises(CreateFailed, match="No space left on device: /state/file"):
        await backend(root, images, steps=replaced("config", full)).start(shell("one", "true"))


@pytest.mark.parametrize("name", NAMES)
async def test_a_half_removed_container_is_finished(root: Path, images: OneImage, name: str) -> None:
    """The removal stops before it undoes a step, as if the driver had been killed there."""

    async def die(_bundle: Bundle) -> None:
        raise KilledHereError

    steps = tuple(dataclasses.replace(step, undo=die) if step.name == name else step for step in STEPS)
    oci = backend(root, images, steps=steps)
    task = handle("one", await oci.start(counting(root)))
    with pytest.raises(KilledHereError):
        await oci.destroy(task)
    later = backend(root, images)
    with pytest.raises(NotFound):
        await later.recover(task)
    await later.sweep()
    assert remains(root) == []
    await oci.destroy(task)


class KilledHereError(Exception):
    """Stands for the death of the driver."""


async def test_a_killed_supervisor_is_told_and_its_container_removed(root: Path, images: OneImage) -> None:
    oci = backend(root, images)
    task = handle("one", await oci.start(shell("one", "exec sleep 1000")))
    os.kill(task.data["supervisor"]["pid"], signal.SIGKILL)
    waiting = asyncio.create_task(oci.wait(task))
    await oci.stop(task, timeout_s=0, signal="KILL")
    end = await waiting
    assert end.signal == signal.SIGKILL or "supervisor was killed" in end.error
    await oci.destroy(task)
    assert remains(root) == []
