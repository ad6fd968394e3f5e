"""The command line, as a person and as a program meets it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from zlayer_driver.cli.commands import cli
from zlayer_driver.nomad.placement import MAX_LINE_BYTES

BATCH = '{"id": "a", "image": "alpine"}\n{"id": "b", "image": "app", "platform": {"os": "windows"}}\nnonsense\n'


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


def _invoke(runner: CliRunner, state: Path, *argv: str, stdin: str | bytes = "") -> tuple[int, str, str]:
    result = runner.invoke(cli, ["--state-dir", str(state), *argv], input=stdin)
    return result.exit_code, result.stdout, result.stderr


def test_without_arguments_it_says_what_it_is(runner: CliRunner, tmp_path: Path) -> None:
    code, out, _ = _invoke(runner, tmp_path)
    assert code == 0
    assert "Nomad task driver" in out
    assert all(name in out for name in ("run", "pull", "images", "inspect", "place", "doctor"))


def test_every_command_for_people_says_how_it_is_used_and_takes_json(runner: CliRunner, tmp_path: Path) -> None:
    context = click.Context(cli)
    lines = [
        (name, *below)
        for name in cli.list_commands(context)
        if (found := cli.get_command(context, name)) and not found.hidden
        for below in ([(inner,) for inner in found.commands] if isinstance(found, click.Group) else [()])
    ]
    for line in lines:
        code, out, _ = _invoke(runner, tmp_path, *line, "--help")
        assert code == 0
        assert "--json" in out


def test_place_answers_each_line_and_its_status_tells(runner: CliRunner, tmp_path: Path) -> None:
    code, out, _ = _invoke(runner, tmp_path, "place", "-", stdin=BATCH)
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 3
    assert answers[0] == {"id": "a", "target": "primary", "rule": "default"}
    assert answers[1]["error"]["required_os"] == "windows"
    assert answers[2]["line"] == 3
    assert _invoke(runner, tmp_path, "place", "-", stdin=BATCH.splitlines()[0])[0] == 0


def test_place_summarises(runner: CliRunner, tmp_path: Path) -> None:
    _, out, _ = _invoke(runner, tmp_path, "place", "--summary", "--json", "-", stdin=BATCH)
    assert json.loads(out) == [
        {"target": "none", "rule": "InvalidSpec", "jobs": 1},
        {"target": "none", "rule": "RouteToPeer", "jobs": 1},
        {"target": "primary", "rule": "default", "jobs": 1},
    ]


def test_place_for_another_node(runner: CliRunner, tmp_path: Path) -> None:
    argv = ("place", "--node", "native_os=darwin,vz,vz_linux", "-")
    _, out, _ = _invoke(runner, tmp_path, *argv, stdin='{"id": "a", "image": "alpine"}')
    assert json.loads(out)["target"] == "vz_linux"
    code, _, err = _invoke(runner, tmp_path, "place", "--node", "native_os=plan9", "-", stdin="")
    assert code == 2
    assert "'native_os=plan9' is unknown" in err


def test_a_line_that_never_ends_costs_no_memory(runner: CliRunner, tmp_path: Path) -> None:
    _, out, _ = _invoke(runner, tmp_path, "place", "-", stdin=b"x" * (10 * MAX_LINE_BYTES) + b"\n" + BATCH.splitlines()[0].encode())
    first, second = map(json.loads, out.splitlines())
    assert "longer than" in first["error"]["message"]
    assert second["id"] == "a"


def test_inspect_never_asks_a_registry(runner: CliRunner, tmp_path: Path) -> None:
    code, out, _ = _invoke(runner, tmp_path, "inspect", "--json", "127.0.0.1:1/never/pulled")
    record = json.loads(out)
    assert code == 0
    assert record["image"] == "127.0.0.1:1/never/pulled:latest"
    assert (record["os"], record["target"], record["rule"]) == (None, "primary", "default")


def test_errors_are_one_line_or_one_object(runner: CliRunner, tmp_path: Path) -> None:
    code, _, err = _invoke(runner, tmp_path, "pull", "127.0.0.1:1/nobody/listens:1")
    assert code == 1
    assert err.startswith("zlayer-driver: cannot pull image '127.0.0.1:1/nobody/listens:1'")
    assert err.count("\n") == 1
    code, out, _ = _invoke(runner, tmp_path, "pull", "--json", "127.0.0.1:1/nobody/listens:1")
    assert code == 1
    assert json.loads(out)["error"]["kind"] == "PullFailed"


def test_images_says_which_target_did_not_answer(runner: CliRunner, tmp_path: Path) -> None:
    config = tmp_path / "agent.hcl"
    config.write_text(f'plugin "zlayer-driver" {{\nconfig {{\nprimary = "podman"\nengine_socket = "{tmp_path}/none.sock"\n}}\n}}')
    code, out, err = _invoke(runner, tmp_path, "--config", str(config), "images")
    assert (code, out, err.count("\n")) == (0, "", 1)
    assert err.startswith("zlayer-driver: without target primary: ")


def test_a_relative_state_dir_is_under_the_working_directory(runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(cli, ["doctor", "--json"], env={"ZLAYER_STATE_DIR": "here"})
    assert str(tmp_path / "here") in result.stdout


def test_doctor_tells_of_every_target(runner: CliRunner, tmp_path: Path) -> None:
    _, out, _ = _invoke(runner, tmp_path, "doctor", "--json")
    rows = {row["what"]: row for row in json.loads(out)}
    assert all(f"target {target}" in rows for target in ("primary", "delegate", "vz", "vz_linux"))
    assert rows["target vz"]["detail"]


def test_nomads_launch_pays_for_no_command_line() -> None:
    script = "import sys; import zlayer_driver.cli.main, zlayer_driver.cli.serve; print([m for m in ('click', 'rich', 'pyroute2', 'httpx2') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["run", "-e", "=x", "alpine"], 2, "'=x' is not of the form NAME=VALUE"),
        (["run", "-e", "NAME", "alpine"], 2, "'NAME' is not of the form NAME=VALUE"),
        (["inspect", "two words"], 1, "'two words' is no image reference"),
        (["pull", "--auth-file", "/nowhere", "alpine"], 2, "'/nowhere' does not exist"),
        (["pull", "tarball:/etc/passwd"], 1, "no tar archive"),
        (["place", "--submit", "--batch", "a/b", "-"], 2, "'a/b' is no name for a batch"),
    ],
)
def test_a_line_that_cannot_be_meant_is_said_so(runner: CliRunner, tmp_path: Path, argv: list[str], code: int, says: str) -> None:
    assert _invoke(runner, tmp_path, *argv)[0] == code
    assert says in _invoke(runner, tmp_path, *argv)[2]


def test_a_state_directory_that_cannot_be_made(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = _invoke(runner, tmp_path / "file" / "state", "images")
    assert code == 1
    assert re.fullmatch(f"zlayer-driver: {tmp_path}/file/state/images\\S*: Not a directory\n", err)


def test_help_that_cannot_be_written_is_said() -> None:
    program = "from zlayer_driver.cli.main import entry; entry()"
    with Path("/dev/full").open("w") as full:
        argv = [sys.executable, "-c", program, "--help"]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "zlayer-driver: standard output: No space left on device\n")
