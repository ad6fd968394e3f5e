"""Batch placement: one answer a line, whatever the line."""

from __future__ import annotations

import io
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zlayer_driver.choice import NodeShape, Request, choose
from zlayer_driver.errors import DriverError
from zlayer_driver.fastpath import canonical
from zlayer_driver.model import OS, ImageFacts, Isolation, Platform, Target
from zlayer_driver.nomad.batch import Batch, answers, chunks
from zlayer_driver.nomad.placement import MAX_LINE_BYTES, Decider

LINUX = NodeShape(OS.LINUX, frozenset({Target.PRIMARY}))
MAC = NodeShape(OS.DARWIN, frozenset(Target))


def _nothing_known(_image: str) -> ImageFacts:
    return ImageFacts()


def _place(*lines: Any, shape: NodeShape = LINUX, facts: ImageFacts | None = None) -> list[dict[str, Any]]:
    raw = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    return list(answers(io.BytesIO(raw), Decider(shape, lambda _image: facts or ImageFacts())))


def test_decisions_come_in_order_with_their_rule() -> None:
    assert _place(
        {"id": "a", "image": "alpine"},
        {"id": "b", "image": "x", "platform": {"os": "linux"}},
        {"id": "c", "image": "x", "runtime": "sandbox"},
    ) == [
        {"id": "a", "target": "primary", "rule": "default"},
        {"id": "b", "target": "primary", "rule": "task platform"},
        {"id": "c", "target": "primary", "rule": "task runtime"},
    ]


def test_what_this_node_cannot_run_names_what_is_missing() -> None:
    (answer,) = _place({"id": "a", "image": "app", "platform": {"os": "windows"}})
    assert answer["id"] == "a"
    assert answer["error"]["kind"] == "RouteToPeer"
    assert answer["error"]["required_os"] == "windows"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{", "no JSON at character 1"),
        (b'{"id": "a", "image": "\xff"}', "not UTF-8 at byte 22"),
        (b'{"id": "a", "id": "b", "image": "x"}', "'id' is there twice"),
        (b'{"id": "a", "image": "x", "labels": {"k": "1", "k": "2"}}', "'k' is there twice"),
        (b'{"id": "a", "image": "x", "n": NaN}', "NaN is no JSON number"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"id": "a", "image": "x", "labels": ' + b'{"a":' * 450 + b"1" + b"}" * 450 + b"}", "labels"),
        (b'{"id": "a", "image": "x", "n": 1' + b"0" * 5000 + b"}", "Exceeds the limit"),
        (b'\xef\xbb\xbf{"id": "a", "image": "x"}', "no JSON"),
        (b'{"id": "a", "image": "x", "labels": {"k": "' + b"v" * 100_000 + b'", "n": []}}', "labels"),
        (b"[1]", "no JSON object"),
        (b'{"image": "x"}', "id: is required"),
        (b'{"id": "a", "image": ""}', "image"),
        (b'{"id": "a", "image": "x", "runtime": "docker"}', "runtime"),
        (b'{"id": "a", "image": "x", "platform": {"os": "plan9"}}', "platform.os"),
        (b'{"id": "a", "image": "' + b"x" * MAX_LINE_BYTES + b'"}', "longer than"),
    ],
)
def test_a_bad_line_is_one_error_with_its_number_and_stops_nothing(line: bytes, told: str) -> None:
    first, bad, last = _place({"id": "1", "image": "x"}, line, {"id": "3", "image": "x"})
    assert (first["id"], last["id"]) == ("1", "3")
    assert bad["line"] == 2
    assert told in bad["error"]["message"]
    assert "\n" not in bad["error"]["message"]
    assert bad["error"]["kind"] == "InvalidSpec"
    assert len(bad["error"]["message"]) <= 2000


def test_blank_lines_are_no_jobs() -> None:
    assert [answer["id"] for answer in _place(b"", {"id": "a", "image": "x"}, b"  ")] == ["a"]


def test_keys_of_the_jobs_own_pass_however_deep() -> None:
    (answer,) = _place(b'{"id": "a", "image": "x", "extra": ' + b'{"a":' * 450 + b"1" + b"}" * 450 + b"}")
    assert answer["target"] == "primary"


def test_a_line_that_never_ends_is_cut_and_the_next_one_counts_on() -> None:
    long = b"x" * (3 * MAX_LINE_BYTES)
    file = io.BytesIO(b'{"id": "1", "image": "x"}\n' + long + b'\n{"id": "3", "image": "x"}')
    assert max(len(chunk) for chunk, _ in chunks(file)) < 3 * MAX_LINE_BYTES
    file.seek(0)
    first, bad, last = answers(file, Decider(LINUX, _nothing_known))
    assert (first["id"], bad["line"], last["id"]) == ("1", 2, "3")
    assert "longer than" in bad["error"]["message"]


def test_threads_answer_in_order_what_one_answers() -> None:
    sizes = (3, 500, 1, 2000, 7, 0) * 4  # memory for answers must grow, and be too large, on the way
    work = [
        (b"".join(b'{"id": "%d-%d", "image": "x"}\n' % (n, m) for m in range(size)), sum(sizes[:n]) + 1) for n, size in enumerate(sizes)
    ]
    one = b"".join(map(bytes, Batch(Decider(MAC, _nothing_known)).answers(work)))
    assert [json.loads(line)["id"] for line in one.splitlines()] == [f"{n}-{m}" for n, size in enumerate(sizes) for m in range(size)]
    for workers in (2, 5):
        batch = Batch(Decider(MAC, _nothing_known), workers)
        assert b"".join(map(bytes, batch.answers(work))) == one
        assert sum(batch.counts.values()) == sum(sizes)


def test_memory_does_not_grow_with_the_number_of_jobs() -> None:
    class Endless(io.RawIOBase):
        left = 20

        def readable(self) -> bool:
            return True

        def readinto(self, memory: Any, /) -> int:
            self.left -= 1
            lines = b'{"id": "job", "image": "alpine"}\n{"id": "j\xc3\xb6b", "image": "b"}\n' * 500 if self.left >= 0 else b""
            memory[: len(lines)] = lines
            return len(lines)

    stream = answers(io.BufferedReader(Endless()), Decider(LINUX, _nothing_known))
    for _ in range(1000):
        next(stream)
    tracemalloc.start()
    for _ in stream:
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


FACTS = st.builds(
    ImageFacts, st.sampled_from([None, *OS]), st.sampled_from([None, "vz", "VZ-Linux"]), st.sampled_from([None, "vm", "sandbox", "vz", "x"])
)


@given(
    runtime=st.sampled_from([None, *Isolation]),
    label=st.sampled_from([None, "vz", "VM", "seatbelt", "ſandbox"]),
    os=st.sampled_from([None, "linux", "windows", "macos", "darwin"]),
    facts=FACTS,
    shape=st.builds(NodeShape, st.sampled_from(OS), st.frozensets(st.sampled_from(Target)).map(lambda found: found | {Target.PRIMARY})),
)
def test_placement_decides_as_the_driver_does(
    runtime: Isolation | None, label: str | None, os: str | None, facts: ImageFacts, shape: NodeShape
) -> None:
    line: dict[str, Any] = {"id": "job", "image": "team/app:1", "runtime": runtime, "platform": {"os": os} if os else None}
    line["labels"] = {"com.zlayer.isolation": label} if label else None
    (answer,) = _place(line, shape=shape, facts=facts)
    platform = Platform(OS("darwin" if os == "macos" else os)) if os else None
    labels = {"com.zlayer.isolation": label} if label else {}
    request = Request(service="job", image=canonical("team/app:1"), runtime=runtime, labels=labels, platform=platform)
    assert {key: value for key, value in answer.items() if key != "line"} == {"id": "job", **_chosen(request, facts, shape)}


def _chosen(request: Request, facts: ImageFacts, shape: NodeShape) -> dict[str, Any]:
    try:
        choice = choose(request, facts, shape)
    except DriverError as error:
        return {"error": {"kind": error.kind, "message": str(error), **error.fields()}}
    return {"target": choice.target, "rule": choice.rule}
