"""Nodes as Nomad tells of them, and which of them a job goes to."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from zlayer_driver.choice import NodeShape, Request, choose
from zlayer_driver.cli.commands import cli
from zlayer_driver.errors import ConfigError, DriverError
from zlayer_driver.model import OS, ImageFacts, Platform, Target
from zlayer_driver.nomad.batch import chunks
from zlayer_driver.nomad.fleet import FleetNode, parse_node, read_fleet
from zlayer_driver.nomad.scoring import LOCAL_BONUS, Fleet, Placement
from zlayer_driver.nomad.spread import FleetBatch

LINUX = NodeShape(OS.LINUX, frozenset({Target.PRIMARY}))
MAC = NodeShape(OS.DARWIN, frozenset({Target.PRIMARY, Target.VZ_LINUX}))
WINDOWS = NodeShape(OS.WINDOWS, frozenset({Target.PRIMARY}))
RECORDED = json.loads((Path(__file__).parents[1] / "data" / "nomad" / "node.json").read_text())


def _node(name: str, shape: NodeShape | None = LINUX, **rest: Any) -> FleetNode:
    return FleetNode(id=f"id-{name}", name=name, shape=shape, **rest)


def _place(nodes: Sequence[FleetNode], *jobs: dict[str, Any], explain: bool = False) -> list[dict[str, Any]]:
    raw = "".join(json.dumps(job) + "\n" for job in jobs).encode()
    batch = FleetBatch(Fleet(nodes), lambda _image: ImageFacts(), explain=explain)
    return [json.loads(line) for block in batch.answers(chunks(io.BytesIO(raw))) for line in block.splitlines()]


def test_a_recorded_node_has_its_shape_architecture_and_cores() -> None:
    node = parse_node(RECORDED)
    assert node.shape == LINUX
    assert (node.arch, node.cores, node.why_not) == ("amd64", 2, "")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"Status": "down"}, "is down"),
        ({"Drain": True}, "is draining"),
        ({"SchedulingEligibility": "ineligible"}, "is not eligible"),
        ({"Drivers": {}}, "has no zlayer driver"),
        ({"Drivers": {"zlayer": {"Detected": True, "Healthy": False}}}, "has an unhealthy zlayer driver"),
    ],
)
def test_a_node_that_takes_no_jobs_says_why(change: dict[str, Any], why: str) -> None:
    assert parse_node({**RECORDED, **change}).why_not == why


def test_a_target_that_was_taken_back_is_none() -> None:
    node = parse_node({**RECORDED, "Attributes": {"driver.zlayer.native_os": "linux", "driver.zlayer.target.delegate": ""}})
    assert node.shape == LINUX


def test_images_at_hand_are_known_by_any_spelling() -> None:
    node = parse_node({**RECORDED, "Attributes": {"unique.driver.zlayer.images": "alpine, ghcr.io/a/b:1,"}})
    assert node.images == {"docker.io/library/alpine:latest", "ghcr.io/a/b:1"}


@pytest.mark.parametrize("text", ["[1]", '{"Name": "x"}', "nonsense", '[{"ID": "a", "Drivers": 7}]', "[" * 100_000])
def test_what_is_no_fleet_is_one_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fleet.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_fleet(path)


def test_jobs_spread_by_cores_and_stay_with_their_image() -> None:
    nodes = [_node("big", cores=8), _node("small", cores=1)]
    jobs = [{"id": str(n), "image": f"image-{n}"} for n in range(90)]
    assert Counter(answer["node"]["name"] for answer in _place(nodes, *jobs)) == {"big": 80, "small": 10}
    nodes = [_node("a"), _node("b", images=frozenset({"docker.io/library/app:latest"}))]
    names = [answer["node"]["name"] for answer in _place(nodes, *({"id": str(n), "image": "app"} for n in range(10)))]
    assert names == ["b", "b", "b", "b", "a", "a", "a", "a", "a", "b"]


def test_each_answer_says_how_many_can_and_why_the_others_cannot() -> None:
    nodes = [_node("linux"), _node("mac", MAC), _node("win", WINDOWS), _node("arm", arch="arm64"), _node("down", why_not="is down")]
    job = {"id": "a", "image": "x", "platform": {"os": "linux", "arch": "amd64"}}
    (answer,) = _place(nodes, job, explain=True)
    assert (answer["target"], answer["rule"], answer["node"]["name"]) == ("primary", "task platform", "linux")
    assert answer["nodes"] == 2
    assert answer["refused"] == {"is down": 1, "runs no such operating system": 1, "has another architecture": 1}
    told = {node["node"]: node.get("target") or node["refused"] for node in answer["fleet"]}
    assert (told["mac"], told["down"]) == ("vz_linux", "is down")
    assert "windows" not in told["arm"]
    assert "amd64" in told["arm"]


def test_a_job_for_nobody_is_an_error_and_stops_nothing() -> None:
    bad, good = _place([_node("a")], {"id": "w", "image": "x", "platform": {"os": "windows"}}, {"id": "l", "image": "x"})
    assert bad["error"] == {
        "kind": "NoNode",
        "message": "no node of the fleet can run it: 1 x runs no such operating system",
        "refused": {"runs no such operating system": 1},
    }
    assert (bad["line"], good["target"]) == (1, "primary")
    (alone,) = _place([], {"id": "l", "image": "x"})
    assert "it has no nodes" in alone["error"]["message"]


fleets = st.lists(
    st.builds(
        lambda shape, arch, cores, images, why: {"shape": shape, "arch": arch, "cores": cores, "images": images, "why_not": why},
        st.sampled_from([LINUX, MAC, WINDOWS]),
        st.sampled_from(["", "amd64", "arm64"]),
        st.integers(1, 4),
        st.frozensets(st.sampled_from("xyz")),
        st.sampled_from(["", "", "is down"]),
    ),
    max_size=8,
).map(lambda found: [_node(f"n{number}", **rest) for number, rest in enumerate(found)])
requests = st.builds(
    lambda image, os, arch: Request(service="s", image=image, platform=Platform(os, arch)),
    st.sampled_from("xyz"),
    st.none() | st.sampled_from(OS),
    st.sampled_from([None, "amd64", "arm64"]),
)


@given(fleets, st.lists(requests, max_size=40))
def test_the_best_node_is_the_one_that_trying_all_would_find(nodes: list[FleetNode], batch: list[Request]) -> None:
    fleet = Fleet(nodes)
    jobs, images = Counter[str](), {node.name: set(node.images) for node in nodes}
    for request in batch:
        scores = {
            node.name: LOCAL_BONUS * (request.image in images[node.name]) - jobs[node.name] / node.cores
            for node in nodes
            if _can(node, request)
        }
        found = fleet.place(fleet.need(request, ImageFacts()))
        best = min(scores, key=lambda name: (-scores[name], name), default=None)
        assert (found and found.node.name) == best
        if found is not None:
            assert found.score == scores[found.node.name]
            jobs[found.node.name] += 1
            images[found.node.name].add(request.image)


def _can(node: FleetNode, request: Request) -> bool:
    wanted = request.platform.arch if request.platform else None
    if node.why_not or node.shape is None or (wanted and node.arch and node.arch != wanted):
        return False
    try:
        choose(request, ImageFacts(), node.shape)
    except DriverError:
        return False
    return True


def test_explaining_changes_nothing() -> None:
    fleet = Fleet([_node("a"), _node("b")])
    need = fleet.need(Request(service="s", image="x"), ImageFacts())
    assert [told.score for told in fleet.explain(need) if isinstance(told, Placement)] == [0, 0]
    assert fleet.place(need) == next(iter(Fleet([_node("a")]).explain(need)))


def test_a_fleet_of_a_file_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps([RECORDED, {**RECORDED, "ID": "other", "Name": "other", "Status": "down"}]))
    argv = ["--state-dir", str(tmp_path / "state"), "place", "--fleet", str(path), "--no-caches"]
    result = CliRunner().invoke(
        cli, [*argv, "-"], input='{"id": "a", "image": "x"}\n{"id": "b", "image": "x", "platform": {"arch": "arm64"}}\nno\n'
    )
    first, second, third = map(json.loads, result.stdout.splitlines())
    assert result.exit_code == 3
    assert first["node"] == {"id": RECORDED["ID"], "name": RECORDED["Name"]}
    assert second["error"]["refused"] == {"is down": 1, "has another architecture": 1}
    assert third["line"] == 3
    table = CliRunner().invoke(cli, [*argv, "--format", "table", "-"], input='{"id": "a", "image": "x"}\n')
    assert f"on {RECORDED['Name']}" in table.stdout
