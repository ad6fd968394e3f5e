"""The compiled lines against their readable twin: the same bytes for anything, and nothing asked twice."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from zlayer_driver import _fastpath, _fastpath_py
from zlayer_driver.choice import NodeShape
from zlayer_driver.errors import CacheBusy
from zlayer_driver.model import OS, ImageFacts, Target
from zlayer_driver.nomad.placement import Decider

MAC = NodeShape(OS.DARWIN, frozenset({Target.PRIMARY, Target.VZ}))
FACTS = {"docker.io/library/linux:latest": ImageFacts(os=OS.LINUX), "docker.io/library/mac:latest": ImageFacts(os=OS.DARWIN, marker="vz")}


Lines = TypeVar("Lines", _fastpath.JobLines, _fastpath_py.JobLines)


def _decider() -> Decider:
    return Decider(MAC, lambda image: FACTS.get(image, ImageFacts()))


def _lines(kind: type[Lines]) -> Lines:
    decider = _decider()
    return kind(decider.tell, decider.know)


def _both(raw: bytes) -> tuple[bytes, bytes]:
    compiled, readable = _lines(_fastpath.JobLines), _lines(_fastpath_py.JobLines)
    once = compiled.answer(raw, 7)
    assert compiled.answer(raw, 7) == once, "what is remembered differs from what was told"
    assert compiled.counts == [2 * count for count in (readable.answer(raw, 7), readable.counts)[1]]
    return once, readable.answer(raw, 7)


texts = st.sampled_from(
    ["a", "b'c", "linux", "docker.io/linux", "mac", "windows", "vz", "VZ", "sandbox", "vm", "", "é", '"', "\\", "\x7f", "\n", "\ud800"]
) | st.text(max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
jobs = st.fixed_dictionaries(
    {"id": texts | values, "image": texts | values},
    optional={
        "runtime": texts | values,
        "labels": st.dictionaries(st.just("com.zlayer.isolation") | texts, texts | values, max_size=2) | values,
        "platform": st.fixed_dictionaries({}, optional={"os": texts | values, "arch": texts | values, "more": values}) | values,
        "command": values,
    },
)
spelt = st.builds(lambda job, plain, dense: _spelt(job, plain=plain, dense=dense), jobs, st.booleans(), st.booleans())
mutated = st.builds(
    lambda line, at, what: line[: at % (len(line) + 1)] + what + line[at % (len(line) + 1) :], spelt, st.integers(0), st.binary(max_size=3)
)


def _spelt(job: Any, *, plain: bool, dense: bool) -> bytes:
    text = json.dumps(job, ensure_ascii=plain, separators=(",", ":") if dense else None)
    return text.encode(errors="surrogatepass")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(spelt | mutated | st.binary(max_size=40), max_size=6).map(b"\n".join))
@example(b'{"id": "a", "image": "linux"}\n{"id": "b", "image": "linux"}\n')
@example(b'{"id":"a","image":"x","a":1,"\\u0061":2}\n{"id":"a","image":"x","a":{"b":1,"b":2}}')
@example(b'{"id":"a","image":"x","a":[1e999,-0,01]}\n{"id":"a","image":"x","a":' + b"[" * 40 + b"]" * 40 + b"}")
@example(b'{"id":"' + b"a" * 513 + b'","image":"x"}\n{"id":"a","image":"' + b"x" * 2049 + b'"}\n{"id":"a","image":"' + b"x" * 1000 + b'"}')
@example(b'{"id":"a","image":"linux"}\n{"id":"b","image":"docker.io/linux:latest"}\n{"id":"c","image":"li\'nux"}\n{"id":"d","image":"mac"}')
@example(b'{"id":"a","image":"' + b"l" * 512 + b'"}\n{"id":"a","image":"' + b"l" * 513 + b'"}')
@example(b"\n \r\n\x0b\n")
def test_both_give_the_same_bytes(raw: bytes) -> None:
    compiled, readable = _both(raw)
    assert compiled == readable


def test_a_plain_line_is_asked_about_once() -> None:
    decider, asked, known = _decider(), list[int](), list[str]()

    def ask(line: bytes, number: int, plain: bool) -> tuple[bytes, int, bool]:
        asked.append(number)
        return decider.tell(line, number, plain)

    def know(image: str) -> tuple[bytes, int] | None:
        known.append(image)
        return decider.know(image)

    lines = _fastpath.JobLines(ask, know)
    images = ["linux", "docker.io/linux:latest", "library/linux"]
    raw = b"".join(b'{"id": "job-%d", "image": "%s", "n": %d}\n' % (n, images[n % 3].encode(), n) for n in range(999))
    answers = [json.loads(line) for line in lines.answer(raw, 1).splitlines()]
    assert (asked, known) == ([1], images)
    assert [(answer["id"], answer["line"], answer["error"]["service"]) for answer in answers] == [
        (f"job-{n}", n + 1, f"job-{n}") for n in range(999)
    ]
    assert "image 'docker.io/library/linux:latest' says linux" in answers[-1]["error"]["message"]


@pytest.mark.parametrize("name", ["i{}", "image-{}", "ghcr.io/team/app:{}", "ghcr.io/team-{}/application-{}:1.0"])
def test_images_whose_names_are_much_alike_are_asked_about_once(name: str) -> None:
    decider, known = _decider(), list[str]()

    def know(image: str) -> tuple[bytes, int] | None:
        known.append(image)
        return decider.know(image)

    lines = _fastpath.JobLines(decider.tell, know)
    images = [name.format(n, n) for n in range(5_000)]
    raw = b"".join(b'{"id": "j", "image": "%s"}\n' % image.encode() for image in images * 2)
    lines.answer(raw, 1)
    assert len(known) < 5_050  # a few may find all their slots taken


def test_what_is_not_known_is_asked_for_each_line() -> None:
    decider, asked = _decider(), list[bool]()

    def ask(line: bytes, number: int, plain: bool) -> tuple[bytes, int, bool]:
        asked.append(plain)
        return decider.tell(line, number, plain)

    lines = _fastpath.JobLines(ask, lambda _image: None)
    assert lines.answer(b'{"id": "a", "image": "linux"}\n' * 3, 1).count(b"RouteToPeer") == 3
    assert asked == [False] * 3


def test_facts_that_cannot_be_had_now_are_an_error_of_that_line() -> None:
    busy = [True]

    def facts(_image: str) -> ImageFacts:
        if busy:
            raise CacheBusy("/cache", "it is being written")
        return ImageFacts()

    decider = Decider(MAC, facts)
    lines = _fastpath.JobLines(decider.tell, decider.know)
    assert b'"Cache"' in lines.answer(b'{"id": "a", "image": "x"}', 1)
    busy.clear()
    assert b'"primary"' in lines.answer(b'{"id": "a", "image": "x"}', 1)


def test_more_kinds_of_jobs_than_are_kept_are_answered_all_the_same() -> None:
    lines = _lines(_fastpath.JobLines)
    for first in range(0, 60_000, 10_000):
        raw = b"".join(b'{"id": "j", "image": "i%d"}\n' % n for n in range(first, first + 10_000))
        assert lines.answer(raw, 1).count(b"primary") == 10_000


def test_threads_share_what_is_known() -> None:
    chunks = [b"".join(b'{"id": "j%d", "image": "i%d"}\n' % (n, n % 97) for n in range(k, k + 3000)) for k in range(40)]
    lines, readable = _lines(_fastpath.JobLines), _lines(_fastpath_py.JobLines)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda chunk: lines.answer(chunk, 1), chunks))
    assert found == [readable.answer(chunk, 1) for chunk in chunks]
    assert lines.counts == readable.counts


def test_what_asking_raises_comes_out() -> None:
    def ask(_line: bytes, _number: int, _plain: bool) -> tuple[bytes, int, bool]:
        raise KeyError("told")

    for kind in (_fastpath.JobLines, _fastpath_py.JobLines):
        with pytest.raises(KeyError, match="told"):
            kind(ask, lambda _image: None).answer(b"x\n", 1)


def test_memory_for_answers_is_used_again_and_only_grows() -> None:
    many, one = b'{"id": "a", "image": "linux"}\n' * 500, b'{"id": "b", "image": "mac"}\n'
    for lines in (_lines(_fastpath.JobLines), _lines(_fastpath_py.JobLines)):
        memory = bytearray()
        size = lines.answer_into(many, 1, memory)
        assert bytes(memory[:size]) == lines.answer(many, 1)
        room = len(memory)
        size = lines.answer_into(one, 1, memory)
        assert bytes(memory[:size]) == lines.answer(one, 1)
        assert (lines.answer_into(b"", 1, memory), len(memory)) == (0, room)


def test_memory_that_somebody_looks_at_is_not_moved() -> None:
    for lines in (_lines(_fastpath.JobLines), _lines(_fastpath_py.JobLines)):
        memory = bytearray(10)
        with memoryview(memory), pytest.raises(BufferError):
            lines.answer_into(b'{"id": "b", "image": "mac"}\n', 1, memory)
        assert len(memory) == 10


def test_lines_are_counted() -> None:
    for raw in (b"", b"a", b"a\n", b"\n\n" * 100):
        assert _fastpath.line_count(raw) == _fastpath_py.line_count(raw) == raw.count(b"\n")
