"""The OCI backend keeps the contract with the machine's own runtimes, on the real image store and a real registry."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from pathlib import Path

import pytest

from tests.contract.fifos import heard
from tests.doubles import registry
from tests.doubles.images import Built, archive, directory, image, member, symlink
from tests.host.oci_lab import RUNTIME, clear, remains
from zlayer_driver import contract
from zlayer_driver.backends.oci import OciBackend
from zlayer_driver.backends.oci_runtime import GVISOR
from zlayer_driver.backends.oci_runtimes import Runtimes
from zlayer_driver.contract import Backend
from zlayer_driver.errors import Unsupported
from zlayer_driver.host import signals
from zlayer_driver.image.store import ImageStore
from zlayer_driver.model import Exit, Handle, Resources, TaskSpec
from zlayer_driver.testing import suite
from zlayer_driver.testing.cases import AbilityCases, Evidence
from zlayer_driver.testing.subject import Subject

pytestmark = pytest.mark.needs("linux", "root", "runc", "conmon", "busybox", "docker-registry")

BASE = "example.org/base:v1"


class OciSubject(Subject):
    def __init__(self, root: Path, store: ImageStore, pulled: str) -> None:
        self._root = root
        self._store = store
        self._image = pulled
        self.logs = root / "logs"
        self.logs.mkdir()
        self.backend = self.successor()

    @property
    def image(self) -> str:
        return self._image

    @property
    def missing_image(self) -> str:
        return f"{self._image}-missing"

    def successor(self) -> Backend:
        return OciBackend(root=self._root / "state", store=self._store, runtimes=Runtimes(RUNTIME))

    async def remains(self) -> Collection[str]:
        return remains(self._root)

    def death(self, number: int) -> Exit:
        """Init of a pid namespace dies of SIGKILL alone; of others it exits, if it cares, as a shell does."""
        return Exit(128 + number, number if number == signals.number("SIGKILL") else 0)

    def exits(self, task_id: str, code: int) -> TaskSpec:
        return self._spec(task_id, f"exit {code}")

    def runs(self, task_id: str, *, ignoring: Sequence[str] = ()) -> TaskSpec:
        heeded = [name for name in ("HUP", "INT", "USR1", "TERM") if f"SIG{name}" not in ignoring]
        traps = "; ".join(f"trap 'exit {128 + signals.number(name)}' {name}" for name in heeded)
        traps += "".join(
            f"; trap '' {name.removeprefix('SIG')}" for name in ignoring
        )  # gVisor shields no init from what it does not handle
        os.mkfifo(self.stdout_of(task_id))
        return self._spec(task_id, f"{traps}; echo ready; while :; do sleep 1000 & wait $!; done")

    async def start(self, spec: TaskSpec) -> Handle:
        """A task of `runs` says when its traps are set: a signal before that is lost on init."""
        if not (Path(spec.stdout_path).is_fifo() and "ready" in spec.args[-1]):
            return await super().start(spec)
        handle, said = await heard(Path(spec.stdout_path), super().start(spec))
        assert said == ["ready"]
        return handle

    def prints(self, task_id: str, out: str, err: str) -> TaskSpec:
        return self._spec(task_id, f"printf '{out}'; printf '{err}' >&2")

    def cannot_start(self, task_id: str) -> TaskSpec:
        return TaskSpec(id=task_id, name=task_id, image=BASE, command="/no/such/command")

    def argv_exits(self, code: int) -> Sequence[str]:
        return ["sh", "-c", f"exit {code}"]

    def argv_prints(self, out: str, err: str) -> Sequence[str]:
        return ["sh", "-c", f"printf '{out}'; printf '{err}' >&2"]

    def argv_prints_env(self, name: str) -> Sequence[str]:
        return ["sh", "-c", f'printf "${name}"']

    def argv_blocks(self) -> Sequence[str]:
        return ["sleep", "1000"]

    def _spec(self, task_id: str, script: str) -> TaskSpec:
        return TaskSpec(
            id=task_id,
            name=task_id,
            image=BASE,
            command="/bin/sh",
            args=("-c", script),
            stdout_path=str(self.stdout_of(task_id)),
            stderr_path=str(self.stderr_of(task_id)),
        )


@pytest.fixture(scope="module")
def busybox() -> Built:
    applets = [symlink(f"bin/{name}", "busybox") for name in ("sh", "sleep")]
    own = member("own", os.urandom(16))  # a prune spares layers that any mount of the machine shows by name, as tests beside these have
    layer = archive(directory("bin"), member("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755), own, *applets)
    return image([layer], config={"Env": ["PATH=/bin"]})


@pytest.fixture(scope="module")
def pulled(busybox: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry.running(tmp_path_factory.mktemp("registry")) as server:
        yield server.push(busybox, "contract", "v1")


class WatchCases(AbilityCases):
    """What is read of a running container."""

    covers = frozenset({contract.CanStreamUsage, contract.HasPid})

    async def test_usage_is_streamed(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanStreamUsage)
        handle = await subject.start(subject.runs("task"))
        samples = await subject.backend.stream_usage(handle)
        assert (await anext(samples)).pids >= 1
        await subject.backend.destroy(handle)

    async def test_pid_is_the_hosts(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.HasPid)
        handle = await subject.start(subject.runs("task"))
        assert Path(f"/proc/{await subject.backend.pid(handle)}").exists()
        await subject.backend.destroy(handle)

    async def test_a_paused_task_can_be_removed(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanPause)
        handle = await subject.start(subject.runs("task"))
        await subject.backend.pause(handle)
        await subject.backend.destroy(handle)
        assert not await subject.remains()


class StoreCases(AbilityCases):
    covers = frozenset({contract.HasImageStore})

    def test_store_is_shared(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.HasImageStore)
        assert isinstance(subject.backend.image_store(), ImageStore)


class TestOci(
    suite.Verbs,
    suite.SignalCases,
    suite.ExecCases,
    suite.StreamExecCases,
    suite.ControlCases,
    suite.UsageCases,
    suite.SweepCases,
    suite.PullCases,
    suite.ImageCases,
    StoreCases,
    WatchCases,
):
    backend = OciBackend
    evidence = Evidence.REAL

    @pytest.fixture
    async def subject(self, tmp_path: Path, busybox: Built, pulled: str) -> AsyncIterator[Subject]:
        store = ImageStore(tmp_path / "images")
        await store.import_archive(f"oci:{busybox.layout(tmp_path / 'layout')}:latest", BASE)
        yield OciSubject(tmp_path, store, pulled)
        await store.close()
        assert await clear(tmp_path) == []

    async def test_prune_leaves_what_a_container_runs_from(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanPruneImages)
        handle = await subject.start(subject.runs("task"))
        assert BASE not in (await subject.backend.prune_images()).deleted
        await subject.backend.destroy(handle)
        assert BASE in (await subject.backend.prune_images()).deleted

    async def test_update_of_limits(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanUpdate)
        handle = await subject.start(subject.runs("task"))
        if Path(RUNTIME).name == GVISOR:
            with pytest.raises(Unsupported, match="gVisor cannot change"):
                await subject.backend.update(handle, Resources(memory_bytes=64 << 20))
        else:
            assert not await subject.backend.update(handle, Resources(memory_bytes=64 << 20))
        await subject.backend.destroy(handle)
