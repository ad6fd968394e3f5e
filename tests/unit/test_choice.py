"""The seven rules on nodes that no recording is of, and the chain of fallbacks."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from zlayer_driver.choice import Choice, NodeShape, Request, Rule, choose, fallbacks
from zlayer_driver.errors import ConfigError, RouteToPeer
from zlayer_driver.model import ISOLATION_LABEL, OS, ImageFacts, Isolation, Platform, Target

LINUX = NodeShape(OS.LINUX, frozenset({Target.PRIMARY}))
LINUX_WITH_VM = NodeShape(OS.LINUX, frozenset({Target.PRIMARY, Target.DELEGATE}))
WINDOWS = NodeShape(OS.WINDOWS, frozenset({Target.PRIMARY, Target.DELEGATE}))
MAC = NodeShape(OS.DARWIN, frozenset(Target))
UNKNOWN = ImageFacts()


def request(*, runtime: Isolation | None = None, label: str | None = None, platform: OS | None = None) -> Request:
    labels: Mapping[str, str] = {} if label is None else {ISOLATION_LABEL: label}
    return Request(
        service="web", image="app:v1", runtime=runtime, labels=labels, platform=Platform(platform, "amd64") if platform else None
    )


@pytest.mark.parametrize(
    ("asked", "facts", "node", "choice"),
    [
        (request(), UNKNOWN, LINUX, Choice(Target.PRIMARY, Rule.DEFAULT)),
        (request(), ImageFacts(OS.LINUX), LINUX, Choice(Target.PRIMARY, Rule.IMAGE_OS)),
        (request(platform=OS.LINUX), ImageFacts(OS.WINDOWS), LINUX, Choice(Target.PRIMARY, Rule.TASK_PLATFORM)),
        (request(runtime=Isolation.SANDBOX), ImageFacts(OS.LINUX), LINUX, Choice(Target.PRIMARY, Rule.TASK_RUNTIME)),
        (request(runtime=Isolation.AUTO, label="VM"), UNKNOWN, LINUX_WITH_VM, Choice(Target.DELEGATE, Rule.TASK_LABEL)),
        (request(label="vz"), ImageFacts(OS.LINUX), LINUX_WITH_VM, Choice(Target.PRIMARY, Rule.IMAGE_OS)),
        (request(), ImageFacts(OS.LINUX, isolation="vm"), LINUX_WITH_VM, Choice(Target.DELEGATE, Rule.IMAGE_ISOLATION)),
        (request(), ImageFacts(OS.WINDOWS), WINDOWS, Choice(Target.PRIMARY, Rule.IMAGE_OS)),
        (request(), ImageFacts(OS.LINUX), WINDOWS, Choice(Target.DELEGATE, Rule.IMAGE_OS)),
        (request(), ImageFacts(OS.DARWIN, marker="vz"), MAC, Choice(Target.VZ, Rule.IMAGE_MARKER)),
        (request(), UNKNOWN, MAC, Choice(Target.VZ_LINUX, Rule.DEFAULT)),
    ],
)
def test_rule(asked: Request, facts: ImageFacts, node: NodeShape, choice: Choice) -> None:
    assert choose(asked, facts, node) == choice


@pytest.mark.parametrize(
    ("asked", "facts", "node", "needed"),
    [
        (request(), ImageFacts(OS.WINDOWS), LINUX, OS.WINDOWS),
        (request(platform=OS.DARWIN), ImageFacts(OS.LINUX), LINUX_WITH_VM, OS.DARWIN),
        (request(), ImageFacts(OS.LINUX), NodeShape(OS.WINDOWS, frozenset({Target.PRIMARY})), OS.LINUX),
    ],
)
def test_system_that_nothing_here_runs(asked: Request, facts: ImageFacts, node: NodeShape, needed: OS) -> None:
    with pytest.raises(RouteToPeer) as caught:
        choose(asked, facts, node)
    assert (caught.value.service, caught.value.required_os, caught.value.recoverable) == ("web", needed, True)


def test_demand_for_what_is_not_here() -> None:
    with pytest.raises(ConfigError, match="vz-linux"):
        choose(request(runtime=Isolation.VZ_LINUX), ImageFacts(OS.LINUX), LINUX)


def test_platform_that_names_no_system_decides_nothing() -> None:
    asked = Request(service="web", image="app:v1", platform=Platform(arch="arm64"))
    assert choose(asked, ImageFacts(OS.LINUX), LINUX).rule is Rule.IMAGE_OS


def test_fallbacks_are_the_guest_and_then_what_is_configured() -> None:
    configured = (Target.DELEGATE, Target.VZ, Target.PRIMARY)
    assert fallbacks(Target.PRIMARY, ImageFacts(OS.DARWIN), MAC, configured) == (Target.VZ, Target.DELEGATE)
    assert fallbacks(Target.PRIMARY, ImageFacts(OS.LINUX), MAC, ()) == ()
    assert fallbacks(Target.DELEGATE, ImageFacts(OS.DARWIN), MAC, configured) == (Target.VZ, Target.PRIMARY)
    assert fallbacks(Target.PRIMARY, ImageFacts(OS.DARWIN), LINUX_WITH_VM, configured) == (Target.DELEGATE,)
