"""What the operator allows, and how a request becomes a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zlayer_driver.admission import admit
from zlayer_driver.config import PluginConfig
from zlayer_driver.errors import ConfigError
from zlayer_driver.model import Auth, Isolation, Mount, PullPolicy, TaskRequest, TaskSpec


def _admit(config: dict[str, Any], operator: dict[str, Any] | None = None, **request: Any) -> TaskSpec:
    return admit(TaskRequest(id="a/web/1", name="web", config={"image": "alpine", **config}, **request), PluginConfig(**(operator or {})))


def test_the_whole_block_arrives() -> None:
    spec = _admit(
        {
            "entrypoint": ["/bin/sh", "-c"],
            "command": "sleep",
            "args": ["1"],
            "runtime": "vz-linux",
            "labels": [{"a": "1"}, {"b": "2"}],
            "platform": {"os": "macos", "arch": "arm64"},
            "force_pull": True,
            "image_pull_timeout": "1m30s",
            "auth": {"username": "u", "password": "p"},
            "pids_limit": "12",
            "extra_hosts": ["db:10.0.0.1"],
            "hostname": "box",
        },
        group_name="group",
    )
    assert spec.image == "docker.io/library/alpine:latest"
    assert spec.service == "group"
    assert spec.entrypoint == ("/bin/sh", "-c")
    assert spec.runtime is Isolation.VZ_LINUX
    assert spec.labels == {"a": "1", "b": "2"}
    assert spec.platform is not None
    assert spec.platform.os == "darwin"
    assert (spec.pull, spec.pull_timeout_s) == (PullPolicy.ALWAYS, 90.0)
    assert spec.auth == Auth("u", "p")
    assert spec.resources.pids == 12
    assert spec.network.hostname == "box"
    assert spec.network.extra_hosts == (("db", "10.0.0.1"),)


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        _admit(
            {
                "privileged": True,
                "cap_add": ["net_admin", "CAP_SYS_TIME"],
                "oci_runtime": "runsc",
                "volumes": ["/etc:/x", "nonsense"],
                "extra_hosts": ["x"],
            }
        )
    text = str(caught.value)
    for part in (
        "allow_privileged",
        "net_admin, CAP_SYS_TIME",
        "runsc",
        "'/etc' lies outside",
        "'nonsense' is not",
        "'x' is not name:address",
    ):
        assert part in text


@pytest.mark.parametrize("allowed", [["CAP_NET_ADMIN"], ["net_admin"], ["all"]])
def test_capabilities_that_the_operator_allows(allowed: list[str]) -> None:
    assert _admit({"cap_add": ["NET_ADMIN"]}, {"allow_caps": allowed}).security.cap_add == ("NET_ADMIN",)


def test_unknown_and_missing_keys_are_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"config of task 'web' does not fit: imag: is no known key"):
        _admit({"imag": "x"})
    with pytest.raises(ConfigError, match="image: is required"):
        admit(TaskRequest(id="a", name="web", config={"image": None}), PluginConfig())


def test_nomads_directories_are_bound(tmp_path: Path) -> None:
    spec = _admit({}, alloc_dir=str(tmp_path), mounts=(Mount(target="/data", source="/srv/data", read_only=True),))
    assert [(mount.target, mount.source) for mount in spec.mounts] == [
        ("/alloc", f"{tmp_path}/alloc"),
        ("/local", f"{tmp_path}/web/local"),
        ("/secrets", f"{tmp_path}/web/secrets"),
        ("/data", "/srv/data"),
    ]


def test_volumes_inside_the_allocation_need_no_leave(tmp_path: Path) -> None:
    (tmp_path / "web" / "local").mkdir(parents=True)
    spec = _admit({"volumes": ["local/conf:/etc/conf:ro", "../alloc:/shared"]}, alloc_dir=str(tmp_path))
    assert spec.mounts[-2:] == (
        Mount(target="/etc/conf", source=f"{tmp_path}/web/local/conf", read_only=True),
        Mount(target="/shared", source=f"{tmp_path}/alloc"),
    )


@pytest.mark.parametrize("source", ["/etc", "../../etc", "local/link/x"])
def test_no_volume_leaves_the_allocation_by_a_trick(tmp_path: Path, source: str) -> None:
    alloc = tmp_path / "alloc1"
    (alloc / "web" / "local").mkdir(parents=True)
    (alloc / "web" / "local" / "link").symlink_to("/etc")
    with pytest.raises(ConfigError, match="outside the allocation"):
        _admit({"volumes": [f"{source}:/x"]}, alloc_dir=str(alloc))
    assert _admit({"volumes": [f"{source}:/x"]}, {"allow_volumes": True}, alloc_dir=str(alloc)).mounts[-1].target == "/x"
