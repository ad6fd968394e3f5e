"""Choices for a batch are those of `choose`, one by one; on both twins."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.replay.twins import TWINS
from zlayer_driver.choice import _MARKERS, _WISHES, Choice, NodeShape, Request, choose
from zlayer_driver.errors import DriverError
from zlayer_driver.model import ISOLATION_LABEL, OS, ImageFacts, Isolation, Platform, Target

both_twins = pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__.rpartition(".")[2])

any_text = st.text(st.characters(exclude_categories=[]), max_size=4) | st.sampled_from(["\0", "vm\0", "a" * 2000])
word = st.sampled_from([*_WISHES, *_MARKERS, "VZ", "Vm", "\u212aVM"]) | any_text
requests = st.builds(
    Request,
    service=st.sampled_from(["a", "b"]),
    image=st.sampled_from(["x", "y"]),
    runtime=st.none() | st.sampled_from(Isolation),
    labels=st.dictionaries(st.just(ISOLATION_LABEL) | any_text, word, max_size=2),
    platform=st.none() | st.builds(Platform, st.none() | st.sampled_from(OS), st.none() | any_text),
)
facts = st.builds(ImageFacts, st.none() | st.sampled_from(OS), st.none() | word, st.none() | word)
nodes = st.builds(
    lambda native, more: NodeShape(native, more | {Target.PRIMARY}), st.sampled_from(OS), st.frozensets(st.sampled_from(Target))
)


def _one(request: Request, known: ImageFacts, node: NodeShape) -> Any:
    try:
        return choose(request, known, node)
    except DriverError as error:
        return _told(error)


def _told(answer: Any) -> Any:
    return (type(answer), str(answer)) if isinstance(answer, DriverError) else answer


@both_twins
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(asked=st.lists(st.tuples(requests, facts), max_size=30), node=nodes)
def test_a_batch_is_decided_as_each_alone(twin: Any, asked: list[tuple[Request, ImageFacts]], node: NodeShape) -> None:
    found = twin.choose_many([request for request, _ in asked], (known for _, known in asked), partial(choose, node=node))
    assert [_told(answer) for answer in found] == [_one(request, known, node) for request, known in asked]


@both_twins
def test_thousands_of_kinds_are_decided_as_each_alone(twin: Any) -> None:
    asked = [Request(service="a", image="x", labels={ISOLATION_LABEL: f"{n % 7000}"}) for n in range(14_000)]
    known = [ImageFacts(isolation="vm" if n % 3 else None) for n in range(14_000)]
    node = NodeShape(OS.DARWIN, frozenset(Target))
    found = twin.choose_many(asked, known, partial(choose, node=node))
    assert found == [choose(*both, node) for both in zip(asked, known, strict=True)]


@both_twins
def test_what_is_no_refusal_comes_out(twin: Any) -> None:
    def broken(_request: Request, _facts: ImageFacts) -> Choice:
        raise KeyError("told")

    with pytest.raises(KeyError, match="told"):
        twin.choose_many([Request(service="a", image="x")], [ImageFacts()], broken)
    with pytest.raises(ValueError, match="1"):
        twin.choose_many([Request(service="a", image="x")], [], broken)


def test_a_kind_is_asked_about_once() -> None:
    asked = list[str]()

    def told(request: Request, known: ImageFacts) -> str:
        asked.append(request.service)
        return f"{request.runtime} {known.os}"

    many = [Request(service=str(n), image="x", runtime=Isolation.VM if n % 2 else None) for n in range(2000)]
    assert TWINS[0].choose_many(many, [ImageFacts()] * 2000, told) == ["None None", "vm None"] * 1000
    assert asked == ["0", "1"]


def test_a_caller_whose_lists_shrink_meanwhile_gets_an_error() -> None:
    many = [Request(service=str(n), image="x") for n in range(2000)]

    def told(_request: Request, _known: ImageFacts) -> str:
        many.clear()
        return "told"

    with pytest.raises(IndexError):
        TWINS[0].choose_many(many, [ImageFacts()] * 2000, told)


def test_what_a_label_takes_out_of_the_list_is_still_there_while_it_is_read() -> None:
    class Label(str):
        __slots__ = ()

        def __hash__(self) -> int:
            return hash(ISOLATION_LABEL)

        def __eq__(self, other: object) -> bool:
            many.clear()
            return super().__eq__(other)

    many = list[Request]()
    many += [Request(service="a", image="x", labels={Label("x"): "vm"}) for _ in range(40)]
    with pytest.raises(IndexError):
        TWINS[0].choose_many(many, [ImageFacts()] * 40, lambda request, _known: request.service)
