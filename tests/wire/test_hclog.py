"""Log lines in the form that a Nomad agent takes apart."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import Any

import pytest

from zlayer_driver.wire import hclog


def entry(record: logging.LogRecord) -> dict[str, Any]:
    raw = hclog.line(record)
    assert raw.endswith(b"\n")
    assert raw.count(b"\n") == 1
    assert len(raw) < 64 << 10
    parsed: dict[str, Any] = json.loads(raw)
    return parsed


def record(message: object = "pulled %s", level: int = logging.INFO, *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("zlayer_driver.image").makeRecord("zlayer_driver.image", level, "f.py", 1, message, args, None, extra=extra)


def test_an_ordinary_line() -> None:
    made = record("pulled %s", logging.WARNING, "alpine", task_id="a/b/c", layers=3)
    made.created = 1767323045.000007
    assert entry(made) == {
        "@level": "warn",
        "@message": "pulled alpine",
        "@module": "zlayer_driver.image",
        "@timestamp": "2026-01-02T03:04:05.000007Z",
        "task_id": "a/b/c",
        "layers": "3",
    }


def test_the_timestamp_always_has_its_six_digits() -> None:
    made = record("x")
    made.created = 1767323045.0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", entry(made)["@timestamp"])


@pytest.mark.parametrize(("level", "name"), [(10, "debug"), (20, "info"), (30, "warn"), (40, "error"), (50, "error"), (25, "debug")])
def test_levels(level: int, name: str) -> None:
    assert entry(record("x", level))["@level"] == name


def test_a_line_stays_short_and_whole() -> None:
    made = record("é\n" * 40_000, logging.INFO, error="\N{GRINNING FACE}" * 40_000, name_="\udcff" * 40_000)
    said = entry(made)
    assert said["@message"].startswith("é\né")
    assert said["name_"].startswith("\udcff")
    assert max(map(len, said.values())) < 4200


def test_a_traceback_is_a_pair_of_the_line() -> None:
    made = record("failed")
    try:
        int("x")
    except ValueError:
        made.exc_info = sys.exc_info()
    assert "ValueError: invalid literal" in entry(made)["traceback"]


def test_a_reader_that_went_is_no_fault() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        hclog.Handler(writer).emit(record("x"))
    finally:
        os.close(writer)
