"""A batch on its way through Nomad: each line runs once, whatever happens in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.doubles.nomad import FakeNomad, Refusal, fake_nomad
from zlayer_driver.cli.commands import cli
from zlayer_driver.errors import ConfigError
from zlayer_driver.nomad.journal import Entry, Journal

PARENT = {
    "ID": "worker",
    "Type": "batch",
    "ParameterizedJob": {"MetaRequired": ["id"], "MetaOptional": ["image", "KEY"]},
    "TaskGroups": [{"Name": "g"}],
}


@pytest.fixture
def nomad(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNomad]:
    with fake_nomad() as fake:
        monkeypatch.setenv("NOMAD_ADDR", fake.address)
        yield fake


def _batch(tmp_path: Path, count: int, **more: Any) -> str:
    path = tmp_path / "night.ndjson"
    path.write_text("".join(json.dumps({"id": f"job-{number}", "image": "app", **more}) + "\n" for number in range(count)))
    return str(path)


def _argv(tmp_path: Path, *argv: str) -> list[str]:
    return ["--state-dir", str(tmp_path / "state"), "place", "--no-caches", *argv]


def _submit(tmp_path: Path, *argv: str, stdin: str = "") -> Result:
    return CliRunner().invoke(cli, _argv(tmp_path, "--submit", *argv), input=stdin)


def _outcomes(result: Result) -> dict[str, str]:
    return {row["id"]: row["outcome"] for row in json.loads(result.stdout)}


def test_a_batch_is_registered_and_followed_to_its_end(tmp_path: Path, nomad: FakeNomad) -> None:
    nomad.outcome = lambda group: "Failed" if group == "job-1" else "Complete"
    result = _submit(tmp_path, _batch(tmp_path, 3))
    assert result.exit_code == 3
    assert result.stdout.splitlines() == ["complete\t2\tjob-0, job-2", "failed\t1\tjob-1"]
    assert sorted(nomad.jobs) == ["night-job-0", "night-job-1", "night-job-2"]


def test_packed_lines_are_groups_of_one_job(tmp_path: Path, nomad: FakeNomad) -> None:
    result = _submit(tmp_path, "--pack", "4", "--json", _batch(tmp_path, 10))
    assert result.exit_code == 0
    groups = sorted([group["Name"] for group in job["TaskGroups"]] for job in nomad.jobs.values())  # registered side by side, in any order
    assert [len(names) for names in groups] == [4, 4, 2]
    assert _outcomes(result) == {f"job-{number}": "complete" for number in range(10)}


def test_a_batch_that_was_begun_goes_on_only_where_that_is_meant(tmp_path: Path, nomad: FakeNomad) -> None:
    batch = _batch(tmp_path, 2)
    assert _submit(tmp_path, batch).exit_code == 0
    again = _submit(tmp_path, batch)
    assert again.exit_code == 1
    assert "--resume" in again.stderr
    with Path(batch).open("a") as file:
        file.write('{"id": "late", "image": "app"}\n')
    assert _outcomes(_submit(tmp_path, "--resume", "--json", batch)) == {"job-0": "complete", "job-1": "complete", "late": "complete"}
    assert set(nomad.ran.values()) == {1}


def test_an_answer_that_was_lost_is_no_second_run(tmp_path: Path, nomad: FakeNomad) -> None:
    lost = ["/v1/jobs"]

    def after(path: str) -> None:
        if path in lost:
            lost.remove(path)
            raise Refusal(0)

    nomad.after = after
    assert _submit(tmp_path, _batch(tmp_path, 5)).exit_code == 0
    assert nomad.ran == {f"night-job-{number}/job-{number}": 1 for number in range(5)}


@pytest.mark.parametrize("options", [(), ("--pack", "3"), ("--dispatch", "worker")])
def test_killed_in_the_middle_and_resumed_each_line_runs_once(tmp_path: Path, nomad: FakeNomad, options: tuple[str, ...]) -> None:
    nomad.jobs["worker"] = {**PARENT, "Status": "running", "Counts": {}}
    lines = 120  # more Nomad jobs than are under way at once, in packs too
    batch, reached, killed, calls = _batch(tmp_path, lines), threading.Event(), threading.Event(), []

    def after(path: str) -> None:
        calls.append(path)
        if len(calls) >= 7:
            reached.set()
            killed.wait(20)

    nomad.after = after
    argv = [sys.executable, "-c", "from zlayer_driver.cli.main import entry; entry()", *_argv(tmp_path, "--submit", *options, batch)]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ) as process:
        assert reached.wait(20)
        process.kill()
    killed.set()
    begun = sum(nomad.ran.values())
    assert 0 < begun < lines
    result = _submit(tmp_path, "--resume", "--json", *options, batch)
    assert _outcomes(result) == {f"job-{number}": "complete" for number in range(lines)}
    assert len(nomad.ran) == lines
    assert set(nomad.ran.values()) == {1}


def test_following_goes_on_while_jobs_run(tmp_path: Path, nomad: FakeNomad) -> None:
    nomad.holds = True
    posts = []

    def after(path: str) -> None:
        posts.append(path)
        if len(posts) == 3:
            threading.Timer(0, nomad.finish).start()

    nomad.after = after
    assert _submit(tmp_path, _batch(tmp_path, 3)).exit_code == 0


def test_what_nomad_refuses_is_told_and_stops_nothing(tmp_path: Path, nomad: FakeNomad) -> None:
    refused = {"left": 1}

    def before(_path: str) -> None:
        if refused["left"]:
            refused["left"] = 0
            raise Refusal(500, "1 error occurred:\n\t* no such thing")

    nomad.before = before
    result = _submit(tmp_path, _batch(tmp_path, 3))
    assert result.exit_code == 3
    assert "refused\t1" in result.stdout
    assert "no such thing" in result.stderr
    assert _submit(tmp_path, "--resume", str(tmp_path / "night.ndjson")).exit_code == 0


def test_a_wrong_token_ends_all_at_once(tmp_path: Path, nomad: FakeNomad) -> None:
    def before(_path: str) -> None:
        raise Refusal(403, "Permission denied")

    nomad.before = before
    result = _submit(tmp_path, _batch(tmp_path, 3))
    assert result.exit_code == 1
    assert "NOMAD_TOKEN" in result.stderr


def test_a_job_that_nomad_has_forgotten_is_gone_and_not_run_again(tmp_path: Path, nomad: FakeNomad) -> None:
    batch = _batch(tmp_path, 2)
    nomad.holds = True

    def after(_path: str) -> None:
        if len(nomad.jobs) == 2:
            nomad.jobs.pop("night-job-0")
            nomad.finish()

    nomad.after = after
    assert _outcomes(_submit(tmp_path, "--json", batch)) == {"job-0": "gone", "job-1": "complete"}
    assert _outcomes(_submit(tmp_path, "--json", "--resume", batch))["job-0"] == "gone"
    assert "night-job-0/job-0" not in nomad.ran


def test_bad_lines_are_told_and_the_others_run(tmp_path: Path, nomad: FakeNomad) -> None:
    lines = ['{"id": "a", "image": "app"}', "no", '{"id": "a", "image": "app"}', '{"id": "b", "image": "x", "config": {"odd": 1}}']
    result = _submit(tmp_path, "--batch", "b", "-", stdin="\n".join(lines))
    assert result.exit_code == 3
    assert [json.loads(line)["line"] for line in result.stderr.splitlines()] == [2, 3, 4]
    assert list(nomad.jobs) == ["b-a"]


def test_a_dispatch_fills_the_meta_that_is_declared(tmp_path: Path, nomad: FakeNomad) -> None:
    nomad.jobs["worker"] = {**PARENT, "Status": "running", "Counts": {}}
    batch = _batch(tmp_path, 2, env={"KEY": "value", "OTHER": "x"})
    shown = CliRunner().invoke(cli, _argv(tmp_path, "--dry-run", "--dispatch", "worker", batch))
    first = json.loads(shown.stdout.splitlines()[0])
    assert first["Meta"] == {"id": "job-0", "image": "app", "KEY": "value"}
    assert _submit(tmp_path, "--dispatch", "worker", batch).exit_code == 0
    assert len(nomad.ran) == 2
    nomad.jobs["plain"] = {**PARENT, "ID": "plain", "ParameterizedJob": None}
    assert "not parameterised" in _submit(tmp_path, "--batch", "b", "--dispatch", "plain", batch).stderr


def test_a_dry_run_shows_jobs_with_constraints_and_affinities(tmp_path: Path) -> None:
    line: dict[str, Any] = {
        "id": "odd id!",
        "image": "app",
        "platform": {"os": "windows", "arch": "arm64"},
        "labels": {"com.zlayer.isolation": "VM"},
    }
    line |= {"config": {"command": "run"}, "cpu": 100, "memory": 64, "env": {"A": "b"}}
    result = CliRunner().invoke(cli, _argv(tmp_path, "--dry-run", "--batch", "b", "-"), input=json.dumps(line))
    job = json.loads(result.stdout)["Job"]
    (group,) = job["TaskGroups"]
    (task,) = group["Tasks"]
    assert result.exit_code == 0
    assert " " not in job["ID"]
    assert [(one["LTarget"], one["Operand"], one["RTarget"]) for one in group["Constraints"]] == [
        ("${attr.driver.zlayer.os.windows}", "is_set", ""),
        ("${attr.cpu.arch}", "=", "arm64"),
    ]
    assert [one["LTarget"] for one in group["Affinities"]] == [
        "${attr.unique.driver.zlayer.images}",
        "${attr.driver.zlayer.target.delegate}",
    ]
    assert task["Config"] == {"command": "run", "image": "app", "labels": {"com.zlayer.isolation": "VM"}, "platform": line["platform"]}
    assert (task["Resources"], task["Env"]) == ({"CPU": 100, "MemoryMB": 64}, {"A": "b"})
    assert not (tmp_path / "state").exists()


def test_a_fleet_gives_each_job_its_node_and_keeps_back_what_no_node_runs(tmp_path: Path, nomad: FakeNomad) -> None:
    nomad.nodes = json.loads((Path(__file__).parents[1] / "data" / "nomad" / "exchanges.json").read_text())[0]["body"]
    lines = ['{"id": "a", "image": "app"}', '{"id": "w", "image": "app", "platform": {"os": "windows"}}']
    result = _submit(tmp_path, "--fleet", "nomad", "--batch", "b", "-", stdin="\n".join(lines))
    assert result.exit_code == 3
    (job,) = nomad.jobs.values()
    assert job["TaskGroups"][0]["Affinities"][-1] == {
        "LTarget": "${node.unique.id}",
        "Operand": "=",
        "RTarget": nomad.nodes[0]["ID"],
        "Weight": 100,
    }
    assert json.loads(result.stderr)["error"]["kind"] == "NoNode"


def test_a_batch_needs_a_name_that_nomad_takes(tmp_path: Path) -> None:
    assert _submit(tmp_path, "-").exit_code == 2
    assert _submit(tmp_path, "--batch", "a b", "-").exit_code == 2


def test_a_journal_drops_the_line_that_a_crash_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "b.ndjson"
    with Journal.open(path, resume=False) as journal:
        journal.plan([Entry("k", {"g": "a"}, {"Job": {}}), Entry("l", {"g": "b"}, {})])
        journal.accepted(journal.entries["k"], "k")
        with pytest.raises(ConfigError, match="another process"), Journal.open(path, resume=True):
            pass
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"ended": "k", "outc')
    with Journal.open(path, resume=True) as journal:
        assert (journal.entries["k"].nomad_id, journal.entries["k"].outcomes, journal.entries["l"].nomad_id) == ("k", {}, "")
        journal.ended(journal.entries["k"], {"a": "complete"})
    assert path.read_bytes().startswith(whole)
    with Journal.open(path, resume=True) as journal:
        assert journal.entries["k"].outcomes == {"a": "complete"}
    path.write_bytes(b'{"odd": 1}\n')
    with pytest.raises(ConfigError, match="no journal"), Journal.open(path, resume=True):
        pass
