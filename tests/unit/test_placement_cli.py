"""``zlayer-driver place`` as a person and a script meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from zlayer_driver.cli.commands import cli

MAC = ("--node", "native_os=darwin,vz,vz_linux")


def _place(tmp_path: Path, *argv: str, stdin: str | bytes = "") -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["--state-dir", str(tmp_path / "state"), "place", *argv], input=stdin)
    return result.exit_code, result.stdout, result.stderr


def _facts(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "facts.ndjson"
    path.write_text("\n".join(lines))
    return str(path)


def test_facts_come_from_a_file_by_any_spelling_of_the_image(tmp_path: Path) -> None:
    facts = _facts(tmp_path, '{"image": "app", "os": "macos"}', "", '{"image": "docker.io/library/guest:1", "marker": "vz"}')
    batch = '{"id": "a", "image": "docker.io/library/app:latest"}\n{"id": "b", "image": "guest:1"}\n{"id": "c", "image": "other"}\n'
    code, out, _ = _place(tmp_path, *MAC, "--facts", facts, "--no-caches", "-", stdin=batch)
    assert code == 0
    assert [(answer["target"], answer["rule"]) for answer in map(json.loads, out.splitlines())] == [
        ("primary", "image os"),
        ("vz", "image marker"),
        ("vz_linux", "default"),
    ]


def test_a_bad_line_of_facts_stops_all_and_says_where(tmp_path: Path) -> None:
    facts = _facts(tmp_path, '{"image": "app", "os": "linux"}', '{"image": "app", "os": "plan9"}')
    code, _, err = _place(tmp_path, "--facts", facts, "-")
    assert code == 1
    assert "facts.ndjson, line 2" in err
    assert "os:" in err


@pytest.mark.parametrize(
    "argv",
    [
        ("--node", "plan9"),
        ("--facts", "/nowhere"),
        ("--format", "xml"),
        ("--workers", "0"),
        ("/nowhere",),
        ("--resume",),
        ("--dry-run", "--pack", "2", "--dispatch", "job"),
        ("--submit", "--summary"),
        ("--explain",),
        ("--fleet", "/nowhere", "--node", "delegate"),
    ],
)
def test_bad_usage_exits_with_2(tmp_path: Path, argv: tuple[str, ...]) -> None:
    code, _, err = _place(tmp_path, *argv)
    assert code == 2
    assert "Usage:" in err


def test_the_schema_is_that_of_a_line(tmp_path: Path) -> None:
    code, out, _ = _place(tmp_path, "--schema")
    schema = json.loads(out)
    assert code == 0
    assert {"id", "image", "runtime", "labels", "platform", "config", "env"} <= set(schema["properties"])
    assert schema["required"] == ["id", "image"]


def test_a_table_has_a_row_for_each_job_and_steers_no_terminal(tmp_path: Path) -> None:
    batch = '{"id": "a", "image": "x"}\n{"id": "\\u001b[2J", "image": "x", "runtime": "vm"}\n'
    code, out, _ = _place(tmp_path, *MAC, "--format", "table", "-", stdin=batch)
    first, second = out.splitlines()
    assert code == 3
    assert first.split() == ["a", "vz_linux", "default"]
    assert "\x1b" not in out
    assert "line 2: the task asks for runtime vm" in second


@pytest.mark.parametrize("workers", ["1", "3"])
def test_answers_come_in_order_whatever_the_number_of_threads(tmp_path: Path, workers: str) -> None:
    batch = tmp_path / "batch.ndjson"
    batch.write_text("".join(f'{{"id": "{n}", "image": "image-{n % 7}", "note": "{"x" * 100}"}}\n' for n in range(30_000)))
    code, out, _ = _place(tmp_path, "--workers", workers, str(batch))
    assert code == 0
    assert [json.loads(line)["id"] for line in out.splitlines()] == [str(n) for n in range(30_000)]


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    _place(tmp_path, "-", stdin='{"id": "a", "image": "x"}')
    assert list(tmp_path.iterdir()) == []
