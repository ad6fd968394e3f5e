"""What the HCS backend tells ctr, to the letter, and what it makes of ctr's answers."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from tests.contract.alterations import Alterations
from tests.contract.test_hcs import BUILD, HcsSubject, home, publish, subject
from tests.doubles.tools import calls
from zlayer_driver.backends import hcs_ctr, hcs_logs
from zlayer_driver.backends.hcs import HcsBackend
from zlayer_driver.backends.hcs_run import isolated
from zlayer_driver.errors import CreateFailed, InvalidSpec, PullFailed, TimedOut, Unsupported, WrongPlatform
from zlayer_driver.host.processes import command_lines
from zlayer_driver.model import Auth, Exit, Health, Mount, Network, PullPolicy, Resources, Security, TaskSpec
from zlayer_driver.readings import ExecOptions
from zlayer_driver.testing.cases import DEADLINE_S, ended
from zlayer_driver.testing.subject import Subject

pytestmark = pytest.mark.needs("linux")

__all__ = ["home", "subject"]


EVENTS = ('namespace==zlayer,topic=="/tasks/exit"', 'namespace==zlayer,topic=="/containers/update"')


def full(subject: HcsSubject, script: str = "exit 7") -> TaskSpec:
    """A task that asks for all that there is a flag for."""
    return dataclasses.replace(
        subject.spec("task", script),
        labels={"com.zlayer.isolation": "hyperv"},
        env={"SECRET": "in no command line"},
        user="ContainerUser",
        work_dir="/proc",
        resources=Resources(memory_bytes=64 << 20, cpu_shares=512),
        mounts=(Mount(source=str(subject.root), target="C:\\data, all", read_only=True),),
    )


def own_words(argv: Sequence[str]) -> Collection[int]:
    """Of the names: one for a new image may be any, and of one to remove that is not there ctr only warns."""
    match argv[5:7]:
        case ["run", _]:
            return range(len(argv) - 3, len(argv))
        case ["tasks", "exec"]:
            return {argv.index("--exec-id") + 1, len(argv) - 1}
        case ["images", "tag" | "delete"]:
            return {len(argv) - 1}
    return ()


async def test_ctr_refuses_every_altered_argument(subject: HcsSubject, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alterations = Alterations(own_words)
    for name in ("run", "begin"):
        monkeypatch.setattr(hcs_ctr, name, alterations.around(getattr(hcs_ctr, name)))
    backend = subject.backend
    assert isinstance(backend, HcsBackend)
    settings = json.loads((home / "ctr.json").read_text())
    (home / "ctr.json").write_text(json.dumps({**settings, "auth": "somebody:hush hush"}))
    await backend.probe()
    await backend.pull(subject.image, policy=PullPolicy.ALWAYS, auth=Auth("somebody", "hush hush"))
    await backend.tag_image(subject.image, "example.org/other:v1")
    await backend.remove_image("example.org/other:v1", force=False)
    handle = await subject.start(full(subject, "while :; do sleep 1000 & wait $!; done"))
    await backend.exec(handle, ["/bin/true"], timeout_s=DEADLINE_S, options=ExecOptions(user="ContainerUser", work_dir="/"))
    await backend.usage(handle)
    await backend.stop(handle, timeout_s=DEADLINE_S, signal="SIGTERM")
    await backend.destroy(handle)
    await backend.prune_images()
    assert not alterations.accepted
    assert len(alterations.refused) > 50


async def test_a_whole_life_in_command_lines(subject: HcsSubject) -> None:
    handle = await subject.start(full(subject))
    assert await ended(subject, handle) == Exit(7)
    await subject.backend.destroy(handle)
    name, directory = handle.data["container"], subject.root / "state/c" / handle.data["container"]
    made = [line[5:] for line in calls(subject.home)]
    listening = {tuple(line) for line in made if line[0] == "events" or line[1] == "label"}  # at the same time, and until they meet
    lines = [line for line in made if tuple(line) not in listening]
    (uri,) = (line[line.index("--log-uri") + 1] for line in lines if line[0] == "run")
    assert lines == [
        ["images", "list"],
        ["content", "get", "sha256:example-org-base-v1"],
        ["content", "get", "sha256:config-example-org-base-v1"],
        [
            *("run", "--detach", "--runtime", "io.containerd.runhcs.v1", "--snapshotter", "windows", "--log-uri", uri),
            *("--env-file", str(directory / "env"), "--label", "zlayer.task=task", "--isolated", "--cni", "--cwd", "/proc"),
            *("--user", "ContainerUser", "--memory-limit", "67108864", "--cpu-shares", "5000"),
            *("--mount", f'type=bind,src={subject.root},"dst=C:\\data, all",options=rbind:ro'),
            *(subject.base, name, "/bin/sh", "-c", "exit 7"),
        ],
        ["tasks", "list"],
        ["tasks", "kill", "--signal", "9", name],
        ["tasks", "delete", name],
        ["containers", "delete", name],
    ]
    assert listening == {("containers", "label", name, "zlayer.watched=true"), ("events", *EVENTS)}
    assert "in no command line" not in json.dumps(lines)


async def test_what_runs_is_removed_by_force(subject: HcsSubject) -> None:
    handle = await subject.start(subject.runs("task"))
    await subject.backend.destroy(handle)
    name, made = handle.data["container"], [line[5:] for line in calls(subject.home)]
    assert made[-3:] == [
        ["tasks", "kill", "--signal", "9", name],
        ["tasks", "delete", "--force", name],
        ["containers", "delete", name],
    ]


async def test_exit_code_is_found_after_the_drivers_death(subject: HcsSubject) -> None:
    handle = await subject.start(subject.exits("task", 7))
    subject.backend = subject.successor()
    await subject.backend.recover(handle)
    assert await ended(subject, handle) == Exit(7)
    subject.backend = subject.successor()
    assert await ended(subject, handle) == Exit(7)
    await subject.backend.destroy(handle)


async def test_wait_outlives_who_listens_for_events(subject: HcsSubject, home: Path) -> None:
    handle = await subject.start(subject.runs("task"))
    waiter = asyncio.create_task(ended(subject, handle))
    assert isinstance(subject.backend, HcsBackend)
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.sleep(0)  # to let the waiter begin, which is when it listens
        await subject.backend._exits._seen.wait()
    (listening,) = (home / "events").iterdir()
    os.kill(int(listening.name), signal.SIGKILL)
    await subject.backend.stop(handle, timeout_s=DEADLINE_S, signal="SIGTERM")
    assert await waiter == subject.death(15)
    await subject.backend.destroy(handle)


async def test_task_that_containerd_lost_has_no_exit_code(subject: HcsSubject) -> None:
    handle = await subject.start(subject.exits("task", 7))
    assert isinstance(subject.backend, HcsBackend)
    name = handle.data["container"]
    await subject.backend._ctr.run("tasks", "delete", "--force", name)
    end = await ended(subject, handle)
    assert (end.code, bool(end.error)) == (255, True)
    await subject.backend.destroy(handle)


@pytest.mark.parametrize(
    ("task", "image", "version", "expected"),
    [
        ("", "", f"{BUILD}.1970", False),
        ("", "", "10.0.17763.1", True),
        ("", "hyperv", f"{BUILD}.1970", True),
        ("", "process", "10.0.17763.1", False),
        ("sandbox", "vm", "10.0.17763.1", False),
        ("VM", "process", f"{BUILD}.1970", True),
        ("nonsense", "hyperv", f"{BUILD}.1970", True),
    ],
)
def test_isolation(task: str, image: str, version: str, *, expected: bool) -> None:
    """The task's word, the image's, then what the kernels demand."""
    spec = TaskSpec(id="task", name="task", image="any", labels={"com.zlayer.isolation": task} if task else {})
    config = {"os.version": version, "config": {"Labels": {"com.zlayer.isolation": image} if image else None}}
    assert isolated(spec, config, BUILD) is expected


async def test_image_of_an_index_is_the_one_of_this_build(subject: HcsSubject, home: Path) -> None:
    publish(home, "example.org/old:v1", **{"os.version": "10.0.17763.1"})
    settings = json.loads((home / "ctr.json").read_text())["registry"]
    where = {"os": "windows", "architecture": "amd64"}
    manifests = [
        {"digest": settings["example.org/old:v1"], "platform": {**where, "os.version": "10.0.17763.1"}},
        {"digest": settings[subject.base], "platform": {**where, "os.version": f"{BUILD}.1"}},
        {"digest": "sha256:linux", "platform": {"os": "linux", "architecture": "amd64"}},
    ]
    (home / "content/sha256:index").write_text(json.dumps({"manifests": manifests}))
    (home / "images").write_text(json.dumps({"example.org/many:v1": "sha256:index"}))
    assert isinstance(subject.backend, HcsBackend)
    assert (await subject.backend.inspect_image("example.org/many:v1")).raw["os.version"] == f"{BUILD}.1"


async def test_only_an_insecure_registry_is_asked_in_the_clear(subject: HcsSubject, home: Path) -> None:
    image = "registry.example:5000/app:v1"
    publish(home, image)
    settings = json.loads((home / "ctr.json").read_text())
    (home / "ctr.json").write_text(json.dumps({**settings, "plain": [image]}))
    assert isinstance(subject.backend, HcsBackend)
    with pytest.raises(PullFailed):
        await subject.backend.pull(image, policy=PullPolicy.ALWAYS, auth=None)
    told = HcsBackend(root=subject.root / "state", build=BUILD, insecure=["registry.example:5000"])
    await told.pull(image, policy=PullPolicy.ALWAYS, auth=None)
    assert await told.has_image(image)


async def test_name_is_given_to_another_image(subject: HcsSubject) -> None:
    assert isinstance(subject.backend, HcsBackend)
    await subject.backend.pull(subject.image, policy=PullPolicy.ALWAYS, auth=None)
    for source in (subject.image, subject.base):
        await subject.backend.tag_image(source, "example.org/other:v1")
    digests = {record.reference: record.digest for record in await subject.backend.list_images()}
    assert digests["example.org/other:v1"] == digests[subject.base] != digests[subject.image]


async def test_command_that_takes_too_long_is_ended_whatever_it_ignores(subject: HcsSubject) -> None:
    assert isinstance(subject.backend, HcsBackend)
    handle = await subject.start(subject.runs("task"))
    mark = f"exec-{os.getpid()}"
    with pytest.raises(TimedOut):
        await subject.backend.exec(handle, ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.01; done", mark], timeout_s=0.5)
    async with asyncio.timeout(DEADLINE_S):
        while any(mark.encode() in argv for _, argv in command_lines()):  # noqa: ASYNC110  # its end tells nobody
            await asyncio.sleep(0.01)
    await subject.backend.destroy(handle)


async def test_linux_image_is_refused_by_name(subject: HcsSubject, home: Path) -> None:
    publish(home, subject.base, os="linux")
    with pytest.raises(WrongPlatform, match="linux"):
        await subject.backend.start(subject.exits("task", 0))
    assert not await subject.remains()


async def test_image_runs_its_own_command(subject: HcsSubject, home: Path) -> None:
    publish(home, subject.base, config={"Entrypoint": ["/bin/sh", "-c"], "Cmd": ["exit 5"]})
    own = dataclasses.replace(subject.exits("own", 0), command=None, args=())
    told = dataclasses.replace(subject.exits("told", 0), command=None, args=("exit 6",))
    for spec, code in ((own, 5), (told, 6)):
        handle = await Subject.start(subject, spec)
        assert await ended(subject, handle) == Exit(code)
        await subject.backend.destroy(handle)


@pytest.mark.parametrize(
    "asked",
    [
        {"env": {"TEXT": "two\nlines"}},
        {"mounts": (Mount(target="C:\\tmp", kind="tmpfs"),)},
        {"security": Security(privileged=True)},
        {"network": Network(mode="path", netns_path="/run/netns/x")},
    ],
    ids=["lines", "tmpfs", "privileged", "netns"],
)
async def test_what_windows_cannot_give_is_refused(subject: HcsSubject, asked: dict[str, object]) -> None:
    with pytest.raises((InvalidSpec, Unsupported)):
        await subject.backend.start(dataclasses.replace(subject.exits("task", 0), **asked))  # type: ignore[arg-type]  # fields of a spec
    assert not await subject.remains()


async def test_refusal_is_told_in_ctrs_words(subject: HcsSubject) -> None:
    with pytest.raises(CreateFailed, match="cannot find the file specified"):
        await subject.backend.start(subject.cannot_start("task"))
    assert isinstance(subject.backend, HcsBackend)
    with pytest.raises(PullFailed, match="failed to resolve"):
        await subject.backend.pull(subject.missing_image, policy=PullPolicy.ALWAYS, auth=None)


async def test_node_without_containerd(subject: HcsSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(subject.backend, HcsBackend)
    subject.backend._ctr._first[2] = r"\\.\pipe\nobody"
    down = await subject.backend.probe()
    monkeypatch.setenv("PATH", str(subject.root))
    absent = await subject.backend.probe()
    assert (down.health, absent.health) == (Health.UNDETECTED, Health.UNDETECTED)
    assert "cannot access socket" in down.description
    assert "install containerd" in absent.description


def test_logger_waits_for_a_reader_and_loses_nothing(tmp_path: Path) -> None:
    """What it copies goes on where its reader went, and the shim is told at once that it is ready."""
    paths = {name: str(tmp_path / name) for name in ("CONTAINER_STDOUT", "CONTAINER_STDERR", "CONTAINER_WAIT", "log")}
    for path in paths.values():
        os.mkfifo(path)
    (tmp_path / "logs.json").write_text(json.dumps([paths["log"], "/dev/null"]))
    ends = [os.open(paths[f"CONTAINER_{stream}"], os.O_RDWR) for stream in ("STDOUT", "STDERR")]
    logger = os.posix_spawn(sys.executable, [sys.executable, "-IS", hcs_logs.__file__, str(tmp_path / "logs.json")], paths)
    Path(paths["CONTAINER_WAIT"]).open("rb").close()
    os.write(ends[0], b"early\n")
    with Path(paths["log"]).open() as reader:
        assert reader.readline() == "early\n"
    os.write(ends[0], b"while nobody reads\n")
    for end in ends:
        os.close(end)
    with Path(paths["log"]).open() as reader:
        assert reader.read() == "while nobody reads\n"
    assert os.waitpid(logger, 0)[1] == 0
