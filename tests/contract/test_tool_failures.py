"""What happens to a container of a tool when something dies, is missing or is asked for that the tool cannot do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.test_krun import KrunSubject
from tests.contract.test_krun import subject as krun
from tests.contract.test_vz import VzSubject
from tests.contract.test_vz import subject as vz
from tests.contract.tool_subject import home
from zlayer_driver.backends.krun import missing
from zlayer_driver.backends.seatbelt_process import seconds, user
from zlayer_driver.backends.tool_job import Job
from zlayer_driver.backends.tool_spec import moved
from zlayer_driver.backends.vz import VzBackend
from zlayer_driver.backends.vz_guest import script
from zlayer_driver.config import PluginConfig
from zlayer_driver.contract import Backend
from zlayer_driver.errors import CreateFailed, InvalidSpec, NotFound, PullFailed, StartFailed, Unsupported
from zlayer_driver.host.processes import command_lines
from zlayer_driver.model import Auth, Exit, Handle, Health, Mount, PullPolicy, Security, Target, TaskSpec
from zlayer_driver.testing.cases import ended

__all__ = ["home", "krun", "vz"]

pytestmark = pytest.mark.needs("linux", "root")


def job_of(backend: Backend, handle: Handle) -> Job:
    found = backend._job(handle)  # type: ignore[attr-defined] # of every backend that drives a tool
    assert isinstance(found, Job)
    return found


def keeper_of(root: Path) -> int:
    """The one that stays: its caller has gone."""
    return next(pid for pid, argv in command_lines() if b"keep" in argv and any(bytes(root) in part for part in argv))


async def test_keeper_that_is_killed_costs_the_exit_code_and_nothing_else(krun: KrunSubject) -> None:
    handle = await krun.start(krun.runs("task"))
    waiting = asyncio.create_task(ended(krun, handle))
    await asyncio.sleep(0)
    os.kill(keeper_of(krun.root), signal.SIGKILL)
    lost = await waiting
    assert (lost.code, lost.signal) == (255, 0)
    assert "its keeper was killed" in lost.error
    with pytest.raises(NotFound):
        await krun.successor().recover(handle)
    await krun.backend.destroy(handle)
    assert not await krun.remains()


async def test_machine_that_dies_is_told_apart_from_its_container(vz: VzSubject) -> None:
    handle = await vz.start(vz.runs("task"))
    (path,) = vz.home.glob("run-*")
    os.kill(int(path.read_text()), signal.SIGKILL)
    lost = await ended(vz, handle)
    assert (lost.code, lost.error) == (255, "its machine ended before it")
    await vz.backend.destroy(handle)
    assert not await vz.remains()


async def test_client_that_is_killed_is_not_its_container(vz: VzSubject) -> None:
    handle = await vz.start(vz.runs("task"))
    os.kill(job_of(vz.backend, handle).pid, signal.SIGKILL)
    assert "tart died of signal 9" in (await ended(vz, handle)).error
    await vz.backend.destroy(handle)
    assert not await vz.remains()


async def test_machine_that_does_not_boot_says_why(vz: VzSubject) -> None:
    (vz.home / "full").write_text("true")
    with pytest.raises(StartFailed, match="number of VMs exceeds the system limit"):
        await vz.backend.start(vz.exits("task", 0))
    assert not await vz.remains()


async def test_cancelled_boot_is_undone(vz: VzSubject) -> None:
    os.mkfifo(vz.home / "boots-for-ever")
    starting = asyncio.create_task(vz.backend.start(vz.runs("task")))
    await asyncio.to_thread((vz.home / "boots-for-ever").read_bytes)
    starting.cancel()
    await asyncio.wait([starting])
    assert not await vz.remains()


async def test_what_a_killed_driver_left_half_made_is_swept(krun: KrunSubject) -> None:
    handle = await krun.start(krun.runs("task"))
    job_of(krun.backend, handle).bundle.started.unlink()
    job_of(krun.backend, handle).close()
    successor = krun.successor()
    await successor.sweep()  # type: ignore[attr-defined] # of every backend that drives a tool
    assert not await krun.remains()


async def test_orphan_is_removed_once_nobody_has_it(krun: KrunSubject) -> None:
    handle = await krun.start(krun.runs("task"))
    job_of(krun.backend, handle).close()
    await krun.successor().sweep(orphans_after_s=0)  # type: ignore[attr-defined] # as above
    assert not await krun.remains()


async def test_what_the_tool_cannot_do_is_named(krun: KrunSubject) -> None:
    spec = krun.exits("task", 0)
    asked = replace(spec, user="1", security=Security(privileged=True), mounts=(Mount(target="/t", kind="tmpfs"),))
    with pytest.raises(Unsupported, match="krunvm cannot give a task its user, tmpfs, privileged"):
        await krun.backend.start(asked)
    with pytest.raises(InvalidSpec, match="arguments without a command"):
        await krun.backend.start(replace(spec, command=None))
    assert not await krun.remains()


async def test_krunvms_own_words_are_told(krun: KrunSubject) -> None:
    with pytest.raises(CreateFailed, match="manifest unknown"):
        await krun.backend.start(krun.spec("task", "", image=krun.missing_image))


async def test_tarts_own_words_are_told(vz: VzSubject) -> None:
    with pytest.raises(CreateFailed, match="404"):
        await vz.backend.start(vz.spec("task", "", image=vz.missing_image))


async def test_tart_is_told_who_asks(vz: VzSubject) -> None:
    """By its environment: no password is in a command line."""
    login = {"HOSTNAME": "example.org", "USERNAME": "somebody", "PASSWORD": "hush hush"}
    (vz.home / "tart.login").write_text(json.dumps({f"TART_REGISTRY_{key}": value for key, value in login.items()}))
    assert isinstance(vz.backend, VzBackend)
    with pytest.raises(PullFailed, match="401"):
        await vz.backend.pull(vz.image, policy=PullPolicy.ALWAYS, auth=Auth("somebody", "wrong"))
    await vz.backend.pull(vz.image, policy=PullPolicy.ALWAYS, auth=Auth("somebody", "hush hush"))
    assert "hush" not in (vz.home / "calls").read_text()


async def test_registry_of_this_machine_is_asked_in_the_clear(vz: VzSubject) -> None:
    """Which the double refuses of any other, as of this one the other way."""
    image = "127.0.0.1:5000/macos:v1"
    (vz.home / "images" / image.replace("/", "_")).write_text("{}")
    assert isinstance(vz.backend, VzBackend)
    await vz.backend.pull(image, policy=PullPolicy.ALWAYS, auth=None)
    assert await vz.backend.has_image(image)


async def test_image_runs_its_own_command(krun: KrunSubject) -> None:
    spec = replace(krun.spec("task", ""), command=None, args=())
    handle = Handle("task", Target.DELEGATE, "krun", await krun.backend.start(spec))
    assert await ended(krun, handle) == Exit(9)
    await krun.backend.destroy(handle)


async def test_tool_that_is_not_there(krun: KrunSubject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    told = await krun.backend.probe()
    assert (told.health, told.description) == (Health.UNDETECTED, f"krunvm is not installed: {missing(PluginConfig()).split(': ', 1)[1]}")
    with pytest.raises(Unsupported, match="brew install krunvm"):
        await krun.backend.start(krun.exits("task", 0))


@pytest.mark.parametrize(("text", "found"), [("0:00.03", 0.03), ("00:00:07", 7), ("1-02:03:04", 93784), ("75:10.50", 4510.5), ("odd", 0)])
def test_cpu_time_of_ps(text: str, found: float) -> None:
    assert seconds(text) == found


def test_users_are_the_nodes() -> None:
    assert user("") == {}
    assert user("12:34") == {"user": 12, "group": 34, "extra_groups": [34]}
    assert user("root")["user"] == 0
    with pytest.raises(InvalidSpec, match="does not know it"):
        user("no such user")


def test_variables_follow_their_mounts() -> None:
    env = {"A": "/alloc", "B": "/alloc/logs", "C": "/allocation", "D": "x /alloc"}
    assert moved(env, {"/alloc": "/host/alloc"}) == {"A": "/host/alloc", "B": "/host/alloc/logs", "C": "/allocation", "D": "x /alloc"}


def test_shell_of_a_guest_is_told_no_names_that_are_none(tmp_path: Path) -> None:
    for env in ({"A B": "c"}, {"é": "c"}, {"A": "\0"}):
        with pytest.raises(InvalidSpec, match="a shell cannot set"):
            script(TaskSpec(id="task", name="task", image="example.org/macos:v1", command="/bin/sh"), env, tmp_path / "script")
