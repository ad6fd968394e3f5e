"""What the WSL 2 backend tells wsl.exe, to the letter, and how it stands failures of WSL, of its agent and of its relays."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.alterations import Alterations
from tests.contract.test_oci import BASE, busybox
from tests.contract.test_wsl2 import Wsl2Subject, backend, distro
from tests.doubles.images import Built
from tests.host.oci_lab import clear
from zlayer_driver.backends import wsl2, wsl2_client
from zlayer_driver.backends.wsl2 import Wsl2Backend
from zlayer_driver.backends.wsl2_client import text
from zlayer_driver.backends.wsl2_paths import to_linux
from zlayer_driver.errors import InvalidSpec, Unsupported
from zlayer_driver.host.pidfd import PidFd, identify
from zlayer_driver.host.processes import command_lines
from zlayer_driver.image.store import ImageStore
from zlayer_driver.model import Exit, Health, Mount
from zlayer_driver.testing.cases import DEADLINE_S, ended

__all__ = ["busybox", "distro"]

pytestmark = pytest.mark.needs("linux", "root", "runc", "conmon", "busybox")


@pytest.fixture
async def subject(distro: Path, tmp_path: Path, busybox: Built) -> AsyncIterator[Wsl2Subject]:
    store = ImageStore(distro / "state/images")
    await store.import_archive(f"oci:{busybox.layout(tmp_path / 'layout')}:latest", BASE)
    await store.close()
    first = backend(distro)
    made = Wsl2Subject(distro, tmp_path, "", first)
    yield made
    for each in (first, *made.successors):
        await each.close()
    assert await clear(distro) == []


@pytest.fixture
def settings(distro: Path) -> Iterator[dict[str, Any]]:
    """What the double is told, for the time of one test."""
    file = distro / "home/wsl.json"
    before = file.read_text()
    yield json.loads(before)
    file.write_text(before)


async def test_wsl_refuses_every_altered_argument(subject: Wsl2Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    alterations = Alterations(lambda _argv: ())
    for module, name in ((wsl2, "run"), (wsl2, "leave"), (wsl2_client, "begin")):
        monkeypatch.setattr(module, name, alterations.around(getattr(module, name)))
    assert (await subject.backend.probe()).health is Health.HEALTHY
    handle = await subject.start(subject.exits("task", 7))
    assert await ended(subject, handle) == Exit(7)
    await subject.backend.destroy(handle)
    assert not alterations.accepted
    assert len(alterations.refused) >= 14


async def test_nothing_of_a_task_is_in_a_command_line_of_windows(subject: Wsl2Subject, distro: Path) -> None:
    spec = dataclasses.replace(subject.exits("task", 0), env={"TOKEN": "hush hush"})
    handle = await subject.start(spec)
    await ended(subject, handle)
    await subject.backend.destroy(handle)
    told = (distro / "home/calls").read_text()
    assert "hush hush" not in told
    assert "exit 0" not in told.replace("|| exit 0;", "")


async def test_wait_outlives_the_agent_and_the_log_goes_on(subject: Wsl2Subject) -> None:
    """What it prints after the agent has died still arrives: container and relay are nobody's children there."""
    handle = await subject.start(
        subject._spec("task", "trap 'printf late; exit 5' TERM; echo ready; while :; do sleep 1000 & wait $!; done")
    )
    waiter = asyncio.create_task(ended(subject, handle))
    assert isinstance(subject.backend, Wsl2Backend)
    await subject.backend.state(handle)
    process = subject.backend._remote._process
    assert process
    os.kill(process.pid, signal.SIGKILL)
    async with asyncio.timeout(DEADLINE_S):
        await process.wait()
    await subject.backend.stop(handle, timeout_s=DEADLINE_S, signal="SIGTERM")
    assert await waiter == Exit(5)
    assert subject.stdout_of("task").read_text() == "ready\nlate"
    await subject.backend.destroy(handle)


async def test_relay_that_died_is_replaced_and_nothing_is_lost(subject: Wsl2Subject) -> None:
    handle = await subject.start(
        subject._spec("task", "trap 'printf late; exit 5' TERM; echo ready; while :; do sleep 1000 & wait $!; done")
    )
    log = subject.stdout_of("task")
    async with asyncio.timeout(DEADLINE_S):
        while log.read_text() != "ready\n":  # noqa: ASYNC110  # a file tells nobody
            await asyncio.sleep(0.01)
    (process,) = filter(None, (identify(pid) for pid, _ in command_lines() if writes_to(pid, log)))
    relay = PidFd.open(process)
    assert relay is not None
    with relay:
        relay.send(signal.SIGKILL)
        await relay.wait()
    subject.backend = subject.successor()
    await subject.backend.recover(handle)
    await subject.backend.stop(handle, timeout_s=DEADLINE_S, signal="SIGTERM")
    assert await ended(subject, handle) == Exit(5)
    assert log.read_text() == "ready\nlate"
    await subject.backend.destroy(handle)


def writes_to(pid: int, path: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/fd/1").readlink() == path
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"installed": False}, "no WSL distro 'zlayer'"),
        ({"version": 1}, "wsl --set-version zlayer 2"),
        ({"utf8": False, "installed": False}, "no WSL distro 'zlayer'"),
        ({"driver": "/bin/echo"}, "install this version in the distro"),
    ],
    ids=["absent", "old", "utf16", "stale"],
)
async def test_what_is_amiss_is_told_with_its_cure(
    subject: Wsl2Subject, distro: Path, settings: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    (distro / "home/wsl.json").write_text(json.dumps({**settings, **changes}))
    found = await subject.backend.probe()
    assert (found.health, said in found.description) == (Health.UNDETECTED, True), found.description


async def test_start_on_a_node_without_the_distro(subject: Wsl2Subject, distro: Path, settings: dict[str, Any]) -> None:
    (distro / "home/wsl.json").write_text(json.dumps({**settings, "installed": False, "utf8": False}))
    with pytest.raises(Unsupported, match="WSL_E_DISTRO_NOT_FOUND"):
        await subject.backend.start(subject.exits("task", 0))


async def test_mount_of_a_windows_directory(subject: Wsl2Subject) -> None:
    """There is no drive here, so it is refused in the distro, by the path that it has there."""
    spec = dataclasses.replace(subject.exits("task", 0), mounts=(Mount(source=r"Q:\some\data", target="/data"),))
    with pytest.raises(InvalidSpec, match="/mnt/q/some/data"):
        await subject.backend.start(spec)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("C:\\data", "/mnt/c/data"),
        ("c:/data/./x//y", "/mnt/c/data/x/y"),
        ("D:\\", "/mnt/d"),
        ("C:\\a\\..\\b c", "/mnt/c/b c"),
        ("\\\\?\\E:\\deep", "/mnt/e/deep"),
        ("\\\\wsl.localhost\\zlayer\\srv", "/srv"),
        ("//wsl$/Zlayer/srv/x", "/srv/x"),
        ("\\\\wsl$\\zlayer", "/"),
        ("/srv", "/srv"),
    ],
)
def test_paths(path: str, expected: str) -> None:
    assert to_linux(path, "zlayer") == expected


@pytest.mark.parametrize(
    "path", ["C:data", "data", "\\\\server\\share", "\\\\wsl$\\other\\srv", "\\\\wsl$\\zlayer-2\\srv", "C:\\..\\x", "C:\\a\0b", ""]
)
def test_paths_that_the_distro_does_not_see(path: str) -> None:
    with pytest.raises(InvalidSpec):
        to_linux(path, "zlayer")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16"])
def test_words_of_wsl(encoding: str) -> None:
    assert text("There is\r\nno distribution\r\n".encode(encoding)[2 * (encoding == "utf-16") :]) == "There is no distribution"
