"""Values survive the way to Nomad's messages and back; configs arrive as Nomad encodes them."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import msgpack
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from zlayer_driver.config import PluginConfig, TaskConfig, parse
from zlayer_driver.errors import ConfigError, DriverError
from zlayer_driver.model import Device, Mount, Network, Resources, TaskRequest
from zlayer_driver.wire import codec, cty, hclspec
from zlayer_driver.wire._gen import task_pb2

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
WORD = st.from_regex(r"[a-z0-9]{1,12}", fullmatch=True)
MIB = st.integers(0, 1 << 20).map(lambda mib: mib << 20)
NETWORKS = st.one_of(
    st.builds(Network, dns_servers=st.tuples(WORD)),
    st.builds(Network, mode=st.just("none"), hostname=st.just(""), dns_options=st.tuples(WORD, WORD)),
    st.builds(lambda name, ip: Network(mode="path", netns_path="/run/netns/x", hostname=name, extra_hosts=((name, ip),)), WORD, WORD),
)
REQUESTS = st.builds(
    TaskRequest,
    id=st.lists(WORD, min_size=1, max_size=3).map("/".join),
    name=TEXT,
    config=st.just({}),
    env=st.dictionaries(TEXT, TEXT, max_size=3),
    user=TEXT,
    resources=st.builds(
        Resources,
        cpu_shares=st.integers(0, 1 << 40),
        cpu_quota_us=st.integers(0, 1 << 40),
        cpu_period_us=st.integers(1, 1_000_000),
        cpuset_cpus=WORD,
        cpuset_group=WORD,
        memory_bytes=MIB,
        oom_score_adj=st.integers(-1000, 1000),
    ),
    mounts=st.lists(
        st.builds(Mount, target=TEXT, source=TEXT, read_only=st.booleans(), propagation=st.sampled_from(["rprivate", "rslave", "rshared"])),
        max_size=2,
    ).map(tuple),
    devices=st.lists(st.builds(Device, TEXT, TEXT, st.sampled_from(["r", "rw", "rwm"])), max_size=2).map(tuple),
    network=NETWORKS,
    alloc_dir=TEXT,
    stdout_path=WORD,
    stderr_path=WORD,
    alloc_id=WORD,
    group_name=TEXT,
    job_name=TEXT,
    job_id=TEXT,
    namespace=TEXT,
    node_name=TEXT,
    node_id=TEXT,
)


@given(REQUESTS)
def test_a_request_survives_both_ways(request: TaskRequest) -> None:
    assert codec.request_from(codec.config_for(request, b"")) == request


@given(st.binary(max_size=200))
def test_any_bytes_are_a_config_or_a_config_error(raw: bytes) -> None:
    with contextlib.suppress(DriverError):
        assert isinstance(codec.config_from(raw, what="config"), dict)


@given(st.binary(max_size=300))
def test_any_message_is_a_request_or_an_error_of_ours(raw: bytes) -> None:
    config = task_pb2.TaskConfig(id="a/b/c", msgpack_driver_config=raw, user=raw.decode("latin-1"))
    with contextlib.suppress(DriverError):
        codec.request_from(config)


def test_a_memory_max_of_minus_one_is_no_limit() -> None:
    message = codec.config_for(TaskRequest(id="a", name="a", config={}), b"")
    message.resources.allocated_resources.memory.memory_mb = 64
    message.resources.allocated_resources.memory.memory_max_mb = -1
    message.resources.linux_resources.memory_limit_bytes = 64 << 20
    resources = codec.request_from(message).resources
    assert (resources.memory_bytes, resources.memory_reservation_bytes) == (0, 64 << 20)


def test_memory_max_is_the_limit_and_memory_the_reservation() -> None:
    message = task_pb2.TaskConfig(id="a")
    message.resources.allocated_resources.memory.memory_mb = 64
    message.resources.allocated_resources.memory.memory_max_mb = 256
    message.resources.linux_resources.memory_limit_bytes = 256 << 20
    resources = codec.request_from(message).resources
    assert (resources.memory_bytes, resources.memory_reservation_bytes) == (256 << 20, 64 << 20)
    again = codec.config_for(TaskRequest(id="a", name="", config={}, resources=resources), b"").resources.allocated_resources.memory
    assert (again.memory_mb, again.memory_max_mb) == (64, 256)


@pytest.mark.parametrize(
    ("message", "value_s"), [(Duration(seconds=2, nanos=250_000_000), 2.25), (Duration(seconds=-5), 0.0), (Duration(), 0.0)]
)
def test_durations(message: Duration, value_s: float) -> None:
    assert codec.seconds(message) == value_s
    assert codec.seconds(codec.duration(value_s)) == value_s
    assert codec.duration(value_s + 0.9999999999).nanos < 1_000_000_000


@pytest.mark.parametrize("value", [5, 5.0, "5"])
def test_a_number_may_be_int_float_or_text(value: object) -> None:
    raw = codec.config_from(msgpack.packb({"image": "a", "pids_limit": value}), what="config")
    assert parse(TaskConfig, raw, what="config").pids_limit == 5


def test_absent_keys_are_nil_and_take_their_defaults() -> None:
    packed = cty.pack(hclspec.of(TaskConfig), {"image": "alpine"})
    raw = codec.config_from(packed, what="config")
    assert set(raw) == set(TaskConfig.model_fields)
    assert [key for key, value in raw.items() if value not in (None, [])] == ["image"]
    assert parse(TaskConfig, raw, what="config") == parse(TaskConfig, {"image": "alpine"}, what="config")


WRITTEN: dict[str, Any] = {
    "image": "alpine:3.20",
    "command": "sh",
    "args": ["-c", 5, True],
    "labels": {"a": "1", "b": 2},
    "auth": [{"username": "u", "password": "p"}],
    "platform": {"os": "macos"},
    "pids_limit": "100",
    "image_pull_timeout": "1m30s",
    "privileged": "true",
    "mount": [{"type": "tmpfs", "target": "/x", "tmpfs_options": {"size": "1m"}}, {"target": "/y", "source": "z"}],
    "devices": [{"host_path": "/dev/fuse"}],
    "ulimit": {"nofile": "10:20"},
    "shm_size": 4096,
}


def test_a_job_authors_block_arrives_through_the_schema() -> None:
    raw = codec.config_from(cty.pack(hclspec.of(TaskConfig), WRITTEN), what="config")
    config = parse(TaskConfig, raw, what="config")
    assert (config.args, config.labels, config.pids_limit) == (["-c", "5", "true"], {"a": "1", "b": "2"}, 100)
    assert config.auth is not None
    assert config.platform is not None
    assert [(mount.type, mount.target, mount.source, mount.tmpfs_options.size) for mount in config.mount] == [
        ("tmpfs", "/x", "", 1 << 20),
        ("bind", "/y", "z", 0),
    ]
    assert (config.devices[0].host_path, config.ulimit, config.shm_size, config.mounts) == ("/dev/fuse", {"nofile": "10:20"}, 4096, [])
    assert (config.auth.password, config.platform.os, config.image_pull_timeout, config.privileged) == ("p", "darwin", 90.0, True)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"image": "a", "imge": "b"}, "no key 'imge'"),
        ({}, "config.image is required"),
        ({"image": "a", "args": "x"}, r"config.args must be a list\(string\)"),
        ({"image": "a", "pids_limit": "many"}, "config.pids_limit must be a number"),
        ({"image": "a", "pids_limit": "Infinity"}, "config.pids_limit must be a number"),
        ({"image": "a", "auth": [{}, {}]}, "config.auth must be one block"),
        ({"image": "a", "auth": {"username": "u"}}, "config.auth.password is required"),
    ],
)
def test_what_the_schema_refuses(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        cty.pack(hclspec.of(TaskConfig), config)


@pytest.mark.parametrize(
    ("value", "packed"),
    [
        (0.1, b"\xa30.1"),
        (2.5, b"\xcb" + struct.pack(">d", 2.5)),
        (7.0, b"\x07"),
        ("7", b"\x07"),
        (1234567890123456789, b"\xcf" + struct.pack(">Q", 1234567890123456789)),
        (1 << 63, b"\xb39223372036854775808"),
    ],
)
def test_numbers_are_packed_as_go_cty_does(value: float | str, packed: bytes) -> None:
    assert cty.pack(hclspec.of(TaskConfig), {"image": "a", "pids_limit": value}).partition(b"\xaapids_limit")[2].startswith(packed)


def test_the_schemas_of_both_blocks() -> None:
    plugin = hclspec.of(PluginConfig).object.attributes
    assert plugin["fallback"].Attr.type == "list(string)"
    assert plugin["image_pull_timeout"].Attr.type == "string"
    assert plugin["allow_privileged"].Attr.type == "bool"
    task = hclspec.of(TaskConfig).object.attributes
    assert task["labels"].Attr.type == "list(map(string))"
    assert task["pids_limit"].Attr.type == "number"
    assert [name for name, spec in task.items() if spec.Attr.required] == ["image"]
    nested = task["auth"].block_value.nested.object.attributes
    assert {name: spec.Attr.required for name, spec in nested.items()} == {"username": True, "password": True}
    assert (task["shm_size"].Attr.type, task["pid_mode"].Attr.type, task["ulimit"].Attr.type) == ("string", "string", "list(map(string))")
    mount = task["mount"].block_list.nested.object.attributes
    assert (mount["target"].Attr.required, mount["type"].Attr.type, mount["tmpfs_options"].block_value.name) == (
        True,
        "string",
        "tmpfs_options",
    )
    for name, spec in task.items():
        assert name in {spec.Attr.name, spec.block_value.name, spec.block_list.name}
