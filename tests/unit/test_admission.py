"""What the operator allows, and how a request becomes a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zlayer_driver.admission import admit
from zlayer_driver.config import PluginConfig
from zlayer_driver.errors import ConfigError
from zlayer_driver.model import Auth, Device, Isolation, Mount, Network, PullPolicy, Resources, Security, TaskRequest, TaskSpec, Ulimit


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


def test_the_keys_of_a_container_arrive(tmp_path: Path) -> None:
    spec = _admit(
        {
            "group_add": ["audio", "29"],
            "init": True,
            "shm_size": "1m",
            "memory_swap": "256m",
            "oom_score_adj": 500,
            "ulimit": [{"nofile": "10:20", "core": "-1", "nproc": "7"}],
            "sysctl": {"net.core.somaxconn": "16", "kernel.shmmax": "1"},
            "dns_servers": ["10.0.0.53"],
            "dns_search_domains": ["a.example"],
            "dns_options": ["ndots:2"],
            "security_opt": ["no-new-privileges", "seccomp=local/filter.json"],
            "ipc_mode": "",
            "pid_mode": None,
        },
        {"allow_seccomp": True},
        alloc_dir=str(tmp_path),
        network=Network(mode="none", dns_servers=("10.9.9.9",), dns_options=("rotate",)),
        resources=Resources(memory_bytes=64 << 20),
    )
    assert (spec.groups, spec.init, spec.shm_bytes) == (("audio", "29"), True, 1 << 20)
    assert (spec.resources.memory_swap_bytes, spec.resources.oom_score_adj) == (256 << 20, 500)
    assert spec.ulimits == (Ulimit("nofile", 10, 20), Ulimit("core", None, None), Ulimit("nproc", 7, 7))
    assert spec.sysctls == {"net.core.somaxconn": "16", "kernel.shmmax": "1"}
    assert (spec.network.dns_servers, spec.network.dns_searches, spec.network.dns_options) == (("10.0.0.53",), ("a.example",), ("ndots:2",))
    assert spec.security == Security(no_new_privileges=True, seccomp=f"{tmp_path}/web/local/filter.json")


@pytest.mark.parametrize("key", ["mount", "mounts"])
def test_mounts_of_the_task(tmp_path: Path, key: str) -> None:
    """Absent keys of a block within a list come as nil."""
    blocks = [
        {"type": "tmpfs", "target": "/scratch", "source": None, "tmpfs_options": {"size": "1m", "mode": 448}, "bind_options": None},
        {"target": "/data", "source": "local/data", "readonly": True, "bind_options": {"propagation": "rslave"}, "type": None},
    ]
    assert _admit({key: blocks}, alloc_dir=str(tmp_path)).mounts[-2:] == (
        Mount(target="/scratch", kind="tmpfs", size_bytes=1 << 20, mode=0o700),
        Mount(target="/data", source=f"{tmp_path}/web/local/data", read_only=True, propagation="rslave"),
    )


def test_what_shares_the_node_needs_leave() -> None:
    config = {
        **{f"{kind}_mode": "host" for kind in ("pid", "ipc", "uts", "userns")},
        "devices": [{"host_path": "/dev/kvm"}, {"host_path": "/dev/net/../sda", "container_path": None}],
        "security_opt": ["seccomp=unconfined", "label=disable"],
        "mount": [{"source": "/etc", "target": "/x"}],
    }
    with pytest.raises(ConfigError) as caught:
        _admit(config)
    text = str(caught.value)
    for part in (
        "pid_mode: ",
        "ipc_mode: ",
        "uts_mode: ",
        "'/dev/kvm'",
        "'/dev/sda'",
        "allow_seccomp",
        "'label=disable'",
        "mount: '/etc'",
    ):
        assert part in text
    del config["security_opt"]
    with pytest.raises(ConfigError, match=r"allow_devices does not have '/dev/sda'$"):
        _admit(config, {"allow_host_namespaces": True, "allow_volumes": True, "allow_devices": ["/dev/kvm", "/dev/net/*"]})
    del config["devices"]
    spec = _admit(config, {"allow_host_namespaces": True, "allow_volumes": True})
    assert spec.security.host_namespaces == ("pid", "ipc", "uts")


def test_devices_that_the_operator_allows() -> None:
    devices = [
        {"host_path": "/tmp/link/../../dev/nvidia0"},
        {"host_path": "/dev/fuse", "container_path": "/dev/f", "cgroup_permissions": "r"},
    ]
    spec = _admit({"devices": devices}, {"allow_devices": ["/dev/nvidia*", "/dev/fuse"]}, devices=(Device("/dev/a", "/dev/a"),))
    assert spec.devices == (Device("/dev/a", "/dev/a"), Device("/dev/nvidia0", "/dev/nvidia0"), Device("/dev/fuse", "/dev/f", "r"))


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"sysctl": {"kernel.core_pattern": "x"}}, "sysctl: 'kernel.core_pattern' is no setting of a container's own"),
        ({"sysctl": {"fs.mqueue./../../kernel/core_pattern": "x"}}, "is no setting"),
        ({"sysctl": {"net.ipv4.ip_forward": "1"}}, "sysctl: 'net.ipv4.ip_forward' would change the node"),
        ({"sysctl": {"kernel.shmmax": "1"}, "ipc_mode": "host"}, "sysctl: 'kernel.shmmax' would change the node"),
        ({"ulimit": {"nofiles": "1"}}, "ulimit: nofiles = '1' is not a limit"),
        ({"ulimit": {"nofile": "many"}}, "ulimit: nofile = 'many' is not a limit"),
        ({"ulimit": {"nofile": "20:10"}}, "above its hard limit"),
        ({"ulimit": {"nofile": "-1:10"}}, "above its hard limit"),
        ({"memory_swap": "1m"}, "memory_swap: 1048576 bytes are less"),
        ({"cpu_hard_limit": True}, "cpu_hard_limit: Nomad did not say"),
        ({"shm_size": "big"}, "shm_size: a size such as"),
        ({"pid_mode": "container:x"}, "pid_mode: "),
        ({"uts_mode": "host", "hostname": "box"}, "hostname: a task in the node's uts namespace"),
        ({"init": True, "pid_mode": "host"}, "init: a task in the node's pid namespace"),
        ({"mount": [{"target": "/x"}]}, "a bind has a source"),
        ({"mount": [{"target": "x", "source": "y"}]}, "mount.0.target: an absolute path"),
        ({"mount": [{"type": "volume", "target": "/x", "source": "y"}]}, "mount.0.type: "),
        ({"devices": [{"host_path": "/dev/kvm", "cgroup_permissions": "x"}]}, "devices.0.cgroup_permissions: "),
    ],
)
def test_keys_that_do_not_fit_are_named(config: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _admit(config, {"allow_host_namespaces": True}, resources=Resources(memory_bytes=64 << 20))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hard_limit_is_the_tasks_part_of_all_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    given = Resources(cpu_fraction=0.125, cpu_shares=500)
    assert _admit({}, resources=given).resources.cpu_quota_us == 0
    limited = _admit({"cpu_hard_limit": True, "cpu_cfs_period": "50000"}, resources=given).resources
    assert (limited.cpu_quota_us, limited.cpu_period_us, limited.cpu_shares) == (25_000, 50_000, 500)
    least = _admit({"cpu_hard_limit": True, "cpu_cfs_period": 1000}, resources=Resources(cpu_fraction=0.001)).resources
    assert least.cpu_quota_us == 1000
