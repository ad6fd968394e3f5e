"""`choose` on anything: it has an answer, and letters' case does not change it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from zlayer_driver.choice import Choice, NodeShape, Request, choose
from zlayer_driver.errors import ConfigError, RouteToPeer
from zlayer_driver.model import ISOLATION_LABEL, OS, ImageFacts, Isolation, Platform, Target

WORDS = ["vz", "vz-linux", "vm", "libkrun", "sandbox", "seatbelt", "auto", "", "ſandbox", "\uff56\uff5a", " vz", "vz\0"]
words = st.none() | st.sampled_from(WORDS) | st.text(max_size=10)
systems = st.none() | st.sampled_from(OS)
nodes = st.builds(
    lambda native, others: NodeShape(native, frozenset({Target.PRIMARY, *others})),
    st.sampled_from(OS),
    st.frozensets(st.sampled_from(Target)),
)
facts = st.builds(ImageFacts, systems, words, words)
requests = st.builds(
    lambda runtime, label, platform, image: Request(
        service="web", image=image, runtime=runtime, labels={} if label is None else {ISOLATION_LABEL: label}, platform=platform
    ),
    st.none() | st.sampled_from(Isolation),
    words,
    st.none() | st.builds(Platform, systems, st.none() | st.text()),
    st.text(),
)


def decided(request: Request, known: ImageFacts, node: NodeShape) -> Choice | tuple[str, dict[str, str]]:
    try:
        return choose(request, known, node)
    except (ConfigError, RouteToPeer) as error:
        return error.kind, error.fields()


@given(requests, facts, nodes)
def test_there_is_an_answer_and_the_node_has_the_target(request: Request, known: ImageFacts, node: NodeShape) -> None:
    answer = decided(request, known, node)
    assert not isinstance(answer, Choice) or answer.target in node.attached


def shouted(word: str | None) -> str | None:
    """Upper case, of ASCII letters alone."""
    return word and "".join(char.upper() if char.isascii() else char for char in word)


@given(requests, facts, nodes)
def test_case_of_words_does_not_matter(request: Request, known: ImageFacts, node: NodeShape) -> None:
    labels = {name: shouted(word) or "" for name, word in request.labels.items()}
    loud = replace(known, marker=shouted(known.marker), isolation=shouted(known.isolation))
    assert decided(replace(request, labels=labels), loud, node) == decided(request, known, node)


@given(requests, facts, nodes, st.text(min_size=1).filter(lambda text: not text.isascii()))
def test_words_that_are_not_ascii_decide_nothing(request: Request, known: ImageFacts, node: NodeShape, word: str) -> None:
    alien = replace(request, labels={ISOLATION_LABEL: word})
    assert decided(alien, replace(known, marker=word, isolation=word), node) == decided(
        replace(request, labels={}), replace(known, marker=None, isolation=None), node
    )


@given(requests, facts, nodes)
def test_known_linux_never_meets_another_systems_sandbox_where_a_guest_is(request: Request, known: ImageFacts, node: NodeShape) -> None:
    quiet = replace(request, platform=None)
    answer = decided(quiet, replace(known, os=OS.LINUX), replace(node, attached=node.attached | {Target.VZ_LINUX}))
    if isinstance(answer, Choice) and node.native_os is not OS.LINUX:
        assert answer.target is not Target.PRIMARY
