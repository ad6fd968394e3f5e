"""The seatbelt backend keeps the contract with doubles of sandbox-exec and cp, on the real image store and a real registry."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.contract.test_oci import StoreCases
from tests.contract.tool_subject import ToolSubject, home
from tests.doubles import registry
from tests.doubles.images import Built, archive, directory, image, member
from tests.doubles.tools import BIN
from zlayer_driver import contract
from zlayer_driver.backends.seatbelt import SeatbeltBackend
from zlayer_driver.contract import Backend
from zlayer_driver.image.store import ImageStore
from zlayer_driver.model import TaskSpec
from zlayer_driver.readings import OverlayKind
from zlayer_driver.testing import suite
from zlayer_driver.testing.cases import DEADLINE_S, AbilityCases, Evidence
from zlayer_driver.testing.subject import Subject

__all__ = ["home"]

pytestmark = pytest.mark.needs("linux", "root", "docker-registry")
BASE = "example.org/base:v1"


class SeatbeltSubject(ToolSubject):
    base = BASE

    def __init__(self, root: Path, store: ImageStore, pulled: str) -> None:
        self._store = store
        self._image = pulled
        super().__init__(root)

    @property
    def image(self) -> str:
        return self._image

    @property
    def missing_image(self) -> str:
        return f"{self._image}-missing"

    def successor(self) -> Backend:
        return SeatbeltBackend(root=self.root / "state", store=self._store)

    def cannot_start(self, task_id: str) -> TaskSpec:
        return TaskSpec(id=task_id, name=task_id, image=BASE, command="/no/such/command")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """That other users may pass through: a container need not be root's."""
    with tempfile.TemporaryDirectory(prefix="zlayer-seatbelt-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def program() -> Built:
    return image([archive(directory("bin"), member("bin/hello", b"#!/bin/sh\necho hello\n", mode=0o755))], os="darwin")


@pytest.fixture(scope="module")
def pulled(program: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry.running(tmp_path_factory.mktemp("registry")) as server:
        yield server.push(program, "contract", "v1")


@pytest.fixture
async def subject(tmp_path: Path, home: Path, program: Built, pulled: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Subject]:
    """With its tools where other users find them, too: the way to a checkout may be root's alone."""
    tools = shutil.copytree(BIN.parent, tmp_path / "tests/doubles", symlinks=True)
    monkeypatch.setenv("PATH", f"{tools / BIN.name}{os.pathsep}{os.environ['PATH']}")
    home.chmod(0o777)
    (home / "calls").touch()
    (home / "calls").chmod(0o666)
    store = ImageStore(tmp_path / "images", os="darwin")
    await store.import_archive(f"oci:{program.layout(tmp_path / 'layout')}:latest", BASE)
    yield SeatbeltSubject(tmp_path, store, pulled)
    await store.close()


class SandboxCases(AbilityCases):
    covers = frozenset({contract.HasOverlayKind, contract.HasState, contract.CanStreamUsage, contract.HasPid})

    async def test_process_is_the_nodes(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanStreamUsage)
        assert isinstance(subject.backend, contract.HasPid)
        assert isinstance(subject.backend, contract.HasOverlayKind)
        handle = await subject.start(subject.runs("task"))
        samples = await subject.backend.stream_usage(handle)
        async with asyncio.timeout(DEADLINE_S):
            while (await anext(samples)).pids < 2:  # its shell, and what that has begun
                pass
        assert Path(f"/proc/{await subject.backend.pid(handle)}").exists()
        assert subject.backend.overlay_kind() is OverlayKind.HOST_PROXY
        await subject.backend.destroy(handle)


class TestSeatbelt(
    suite.Verbs,
    suite.SignalCases,
    suite.ExecCases,
    suite.StreamExecCases,
    suite.UsageCases,
    suite.SweepCases,
    suite.PullCases,
    suite.ImageCases,
    StoreCases,
    SandboxCases,
):
    backend = SeatbeltBackend
    evidence = Evidence.DOUBLE
