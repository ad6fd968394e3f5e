"""The WSL 2 backend keeps the contract: wsl.exe is a double, and the distro behind it is this Linux, with its real OCI backend."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.contract.test_oci import BASE, OciSubject, busybox, pulled
from tests.doubles.images import Built
from tests.doubles.tools import BIN
from tests.host.oci_lab import RUNTIME, clear, remains
from zlayer_driver import contract
from zlayer_driver.backends.wsl2 import DISTRO, Wsl2Backend
from zlayer_driver.config import PluginConfig
from zlayer_driver.contract import Backend
from zlayer_driver.image.store import ImageStore
from zlayer_driver.testing import suite
from zlayer_driver.testing.cases import AbilityCases, Evidence
from zlayer_driver.testing.subject import Subject

__all__ = ["busybox", "pulled"]  # fixtures of the OCI backend's suite: the images are the same

pytestmark = pytest.mark.needs("linux", "root", "runc", "conmon", "busybox", "docker-registry")


class Wsl2Subject(OciSubject):
    """``first`` is shared by all tests: an agent costs half a second. Its successors are new, and go with the test."""

    def __init__(self, distro: Path, logs: Path, pulled: str, first: Wsl2Backend) -> None:
        self._root = distro
        self._image = pulled
        self.logs = logs
        self.backend = first
        self.successors: list[Wsl2Backend] = []

    def successor(self) -> Backend:
        self.successors.append(backend(self._root))
        return self.successors[-1]

    async def remains(self) -> Collection[str]:
        """The agent is the distro's."""
        return [found for found in remains(self._root) if "b'agent'" not in found]


def backend(distro: Path) -> Wsl2Backend:
    return Wsl2Backend(PluginConfig(oci_runtime=RUNTIME), state_dir=str(distro / "state"))


@pytest.fixture(scope="class")
def distro(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("distro")
    (root / "home").mkdir()
    settings = {"name": DISTRO, "driver": str(Path(sys.executable).with_name("zlayer-driver")), "state_dir": str(root / "state")}
    (root / "home/wsl.json").write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOUBLES", str(root / "home"))
        patch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
        yield root


@pytest_asyncio.fixture(scope="class", loop_scope="class")
async def first(distro: Path) -> AsyncIterator[Wsl2Backend]:
    made = backend(distro)
    yield made
    await made.close()
    assert await clear(distro) == []


class UsageStreamCases(AbilityCases):
    covers = frozenset({contract.CanStreamUsage})

    async def test_usage_is_streamed(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanStreamUsage)
        handle = await subject.start(subject.runs("task"))
        samples = await subject.backend.stream_usage(handle)
        assert (await anext(samples)).pids >= 1
        await subject.backend.destroy(handle)


@pytest.mark.asyncio(loop_scope="class")
@pytest.mark.filterwarnings("ignore:.*but it is not an async function")
class TestWsl2(
    suite.Verbs,
    suite.SignalCases,
    suite.ExecCases,
    suite.StreamExecCases,
    suite.ControlCases,
    suite.UsageCases,
    suite.SweepCases,
    suite.PullCases,
    suite.ImageCases,
    UsageStreamCases,
):
    backend = Wsl2Backend
    evidence = Evidence.DOUBLE

    @pytest_asyncio.fixture(loop_scope="class")
    async def subject(self, distro: Path, tmp_path: Path, busybox: Built, pulled: str, first: Wsl2Backend) -> AsyncIterator[Subject]:
        store = ImageStore(distro / "state/images")
        await store.import_archive(f"oci:{busybox.layout(tmp_path / 'layout')}:latest", BASE)
        await store.close()
        subject = Wsl2Subject(distro, tmp_path, pulled, first)
        yield subject
        await first.prune_images()
        for successor in subject.successors:
            await successor.close()
        left = await subject.remains()
        await clear(distro)
        assert left == []
