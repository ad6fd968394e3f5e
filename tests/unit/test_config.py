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
