"""What an engine is asked for, from a task."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zlayer_driver.backends.engine_api import DOCKER, PODMAN, Engine
from zlayer_driver.backends.engine_spec import create_body, limits, spec_limits
from zlayer_driver.backends.engine_streams import parse_time
from zlayer_driver.errors import InvalidSpec
from zlayer_driver.model import Device, Mount, Network, Resources, Security, TaskSpec, Ulimit


def _body(engine: Engine = DOCKER, **fields: object) -> dict[str, object]:
    spec = TaskSpec(**{"id": "t", "name": "t", "image": "example.org/app:v1", **fields})  # type: ignore[arg-type]  # as each case says
    return create_body(spec, engine, {"ours": "yes"}, os.getpid())


def _host(engine: Engine = DOCKER, **fields: object) -> dict[str, object]:
    found = _body(engine, **fields)["HostConfig"]
    assert isinstance(found, dict)
    return found


def test_command_is_the_images_unless_the_task_says() -> None:
    assert {"Cmd", "Entrypoint"}.isdisjoint(_body())
    assert _body(command="a", args=("b",))["Cmd"] == ["a", "b"]
    assert _body(args=("b",))["Cmd"] == ["b"]
    assert _body(entrypoint=("e",))["Entrypoint"] == ["e"]


def test_our_labels_win() -> None:
    assert _body(labels={"ours": "no", "theirs": "x"})["Labels"] == {"ours": "yes", "theirs": "x"}


def test_memory_brings_no_swap_unless_the_task_says() -> None:
    assert limits(Resources(memory_bytes=64)) == {"Memory": 64, "MemorySwap": 64}
    assert limits(Resources(memory_bytes=64, memory_swap_bytes=96))["MemorySwap"] == 96
    assert spec_limits(Resources(memory_bytes=64, cpu_shares=5)) == {"memory": {"limit": 64, "swap": 64}, "cpu": {"shares": 5}}


def test_namespace_of_an_allocation_is_for_engines_that_can_join_it() -> None:
    network = Network(mode="path", netns_path="/run/netns/a")
    assert _host(PODMAN, network=network)["NetworkMode"] == "ns:/run/netns/a"
    with pytest.raises(InvalidSpec, match="docker cannot put a container"):
        _host(DOCKER, network=network)


def test_seccomp_filter_is_named_or_given(tmp_path: Path) -> None:
    (tmp_path / "filter").write_text("{}")
    security = Security(seccomp=str(tmp_path / "filter"), no_new_privileges=True, host_namespaces=("pid",))
    assert _host(PODMAN, security=security)["SecurityOpt"] == ["no-new-privileges", f"seccomp={tmp_path}/filter"]
    host = _host(DOCKER, security=security)
    assert (host["SecurityOpt"], host["PidMode"]) == (["no-new-privileges", "seccomp={}"], "host")


def test_mounts_devices_and_limits() -> None:
    host = _host(
        mounts=(Mount(target="/a", source="/b", read_only=True), Mount(target="/t", kind="tmpfs", size_bytes=5, mode=0o700)),
        devices=(Device("/dev/fuse", "/dev/x", "r"),),
        ulimits=(Ulimit("nofile", 1, 2), Ulimit("nproc", None, None), Ulimit("core", 0, None)),
    )
    assert host["Mounts"] == [
        {"Type": "bind", "Target": "/a", "ReadOnly": True, "Source": "/b", "BindOptions": {"Propagation": "rprivate"}},
        {"Type": "tmpfs", "Target": "/t", "ReadOnly": False, "TmpfsOptions": {"SizeBytes": 5, "Mode": 0o700}},
    ]
    assert host["Devices"] == [{"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/x", "CgroupPermissions": "r"}]
    assert host["Ulimits"] == [
        {"Name": "nofile", "Soft": 1, "Hard": 2},
        {"Name": "nproc", "Soft": -1, "Hard": -1},
        {"Name": "core", "Soft": 0, "Hard": -1},
    ]


@pytest.mark.parametrize(
    ("text", "micro", "hour"),
    [("2026-11-24T18:00:01.649919745Z", 649919, 18), ("2026-11-24T18:00:01Z", 0, 18), ("2026-11-24T18:00:01.5+02:00", 500000, 16)],
)
def test_times_as_go_writes_them(text: str, micro: int, hour: int) -> None:
    found = parse_time(text)
    assert (found.microsecond, found.hour) == (micro, hour)
