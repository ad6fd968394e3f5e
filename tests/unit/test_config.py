"""The config blocks as msgpack brings them."""

from __future__ import annotations

import pytest

from zlayer_driver.config import PluginConfig, TaskConfig, parse
from zlayer_driver.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("1h2m3s", 3723.0), ("250ms", 0.25), ("1.5m", 90.0), (5, 5.0), ("7", 7.0), ("0.1", 0.1)]
)
def test_durations(text: object, seconds: float) -> None:
    assert parse(TaskConfig, {"image": "a", "image_pull_timeout": text}, what="task").image_pull_timeout == seconds


@pytest.mark.parametrize("text", ["soon", "5 m", "-1s", "1m x", "", "1d"])
def test_what_is_no_duration_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="image_pull_timeout"):
        parse(TaskConfig, {"image": "a", "image_pull_timeout": text}, what="task")


@pytest.mark.parametrize("number", [12, 12.0, "12"])
def test_numbers_come_as_int_float_or_text(number: object) -> None:
    assert parse(TaskConfig, {"image": "a", "pids_limit": number}, what="task").pids_limit == 12


def test_nil_counts_as_absent() -> None:
    block = parse(TaskConfig, {"image": "a", "args": None, "platform": {"os": None, "arch": "arm64"}, "labels": None}, what="task")
    assert block.args == []
    assert block.platform is not None
    assert block.platform.os is None


def test_nothing_at_all_is_the_default() -> None:
    assert parse(PluginConfig, None, what="plugin config") == PluginConfig()


def test_a_relative_state_dir_is_refused() -> None:
    with pytest.raises(ConfigError, match="state_dir"):
        parse(PluginConfig, {"state_dir": "here"}, what="plugin config")


def test_passwords_stay_out_of_the_repr() -> None:
    block = parse(TaskConfig, {"image": "a", "auth": {"username": "u", "password": "secret"}}, what="task")
    assert "secret" not in repr(block)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"overlay": 5}, "overlay: one block is needed"),
        ({"fallback": "delegate"}, "fallback: a list is needed, not 'delegate'"),
        ({"fallback": ["nowhere"]}, "fallback.0: must be 'primary', 'delegate', 'vz' or 'vz_linux', not 'nowhere'"),
        ({"image_max_layers": "many"}, "image_max_layers: a whole number is needed, not 'many'"),
        ({"image_max_layers": 0}, "image_max_layers: must be greater than 0, not 0"),
        ({"allow_privileged": "maybe"}, "allow_privileged: true or false is needed, not 'maybe'"),
        ({"registry_mirrors": "mirror"}, "registry_mirrors: a map is needed, not 'mirror'"),
        ({"registry_mirrors": {"docker.io": "http://mirror"}}, "registry_mirrors: 'http://mirror' is no registry"),
        ({"insecure_registries": ["http://local"]}, "insecure_registries.0: 'http://local' is no registry: name it as host[:port];"),
        ({"overlay": {"network": "10.8.0.1/16", "endpoint": "192.0.2.1"}}, "overlay.network: a subnet is needed"),
        ({"overlay": {"network": "10.8.0.0/16", "endpoint": "host"}}, "overlay.endpoint: an IP address is needed, not 'host'"),
    ],
)
def test_a_fault_is_said_in_the_words_of_the_config(config: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse(PluginConfig, {**config, "unknown": 1}, what="plugin config")
    assert says in str(told.value)


@pytest.mark.parametrize(
    "config",
    [
        {"image": "a", "auth": "user:secret"},
        {"image": "a", "auth": {"username": "u", "password": ["secret"]}},
        {"image": "a", "auth": [{"username": "u", "password": "secret"}, {}]},
    ],
)
def test_faults_show_no_secrets_of_a_task(config: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as told:
        parse(TaskConfig, config, what="task")
    assert "auth" in str(told.value)
    assert "secret" not in str(told.value)


def test_faults_show_no_token_of_a_plugin() -> None:
    overlay = {"network": "10.8.0.0/16", "endpoint": "192.0.2.1", "subnet": "10.8.1.0/24", "nomad": {"token": "secret"}}
    with pytest.raises(ConfigError, match="Nomad's to say") as told:
        parse(PluginConfig, {"overlay": overlay}, what="plugin config")
    assert "secret" not in str(told.value)
