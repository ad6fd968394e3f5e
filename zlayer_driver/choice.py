"""Which target a container goes to: pure, from what this node knows alone. Seven rules, the first that applies decides.

1. the task's ``runtime`` key;
2. the task's label ``com.zlayer.isolation``;
3. the isolation default that the image declares, by the same words as the label;
4. the image's runtime marker;
5. the operating system in the task's ``platform``;
6. the operating system in the image's config;
7. nothing known: the Linux guest where the node has one, for most images are Linux; else the node's own runtime.

A word of rules 2 to 4 that is unknown, or whose target the node lacks, decides nothing. Rule 1 is a demand: what it names and the node
lacks is a `ConfigError`. A Linux image that is asked into the sandbox (rules 1 to 3) goes to the Linux guest where there is one: a
sandbox of another system cannot execute it.

Rules 5 and 6 send an operating system that nothing here runs to another node (`RouteToPeer`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NoReturn, Self

from zlayer_driver.errors import ConfigError, RouteToPeer
from zlayer_driver.model import ISOLATION_LABEL, OS, ImageFacts, Isolation, Platform, Target, TaskSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What of a task decides. ``labels`` are the container's."""

    service: str
    image: str
    runtime: Isolation | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None

    @classmethod
    def of(cls, spec: TaskSpec) -> Self:
        return cls(service=spec.service, image=spec.image, runtime=spec.runtime, labels=spec.labels, platform=spec.platform)


@dataclass(frozen=True, slots=True)
class NodeShape:
    """What a node has: the operating system of its primary's containers, and its targets (the primary is always one)."""

    native_os: OS
    attached: frozenset[Target]


class Rule(StrEnum):
    TASK_RUNTIME = "task runtime"
    TASK_LABEL = "task label"
    IMAGE_ISOLATION = "image isolation"
    IMAGE_MARKER = "image marker"
    TASK_PLATFORM = "task platform"
    IMAGE_OS = "image os"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Choice:
    target: Target
    rule: Rule


_DEMANDS: Final = {Isolation.VZ: Target.VZ, Isolation.VZ_LINUX: Target.VZ_LINUX, Isolation.VM: Target.DELEGATE}
_WISHES: Final = {
    "vz": Target.VZ,
    "vz-linux": Target.VZ_LINUX,
    "vm": Target.DELEGATE,
    "libkrun": Target.DELEGATE,
    "sandbox": Target.PRIMARY,
    "seatbelt": Target.PRIMARY,
}
_MARKERS: Final = {"vz": Target.VZ, "vz-linux": Target.VZ_LINUX}


def choose(request: Request, facts: ImageFacts, node: NodeShape) -> Choice:
    """The target, and the rule that named it; `ConfigError` or `RouteToPeer` where this node cannot run the task."""
    for rule, decide in _RULES.items():
        target = decide(request, facts, node)
        if target is not None:
            return Choice(target, rule)
    return Choice(_default(node), Rule.DEFAULT)


def fallbacks(target: Target, facts: ImageFacts, node: NodeShape, configured: Sequence[Target]) -> tuple[Target, ...]:
    """Where to try next, in order, when ``target`` fails to create: the macOS guest for a macOS image, then what the config names."""
    guest = (Target.VZ,) if target is Target.PRIMARY and facts.os is OS.DARWIN else ()
    return tuple(other for other in dict.fromkeys((*guest, *configured)) if other in node.attached and other is not target)


def _task_runtime(request: Request, facts: ImageFacts, node: NodeShape) -> Target | None:
    if request.runtime is Isolation.SANDBOX:
        return _sandbox(facts, node)
    target = _DEMANDS.get(request.runtime) if request.runtime else None
    if target is not None and target not in node.attached:
        raise ConfigError(
            f"the task asks for runtime {request.runtime!s}, and this node has no {target} backend",
            hint="leave runtime out, or place the task on a node that has it; `zlayer-driver doctor` tells what this one lacks",
        )
    return target


def _task_label(request: Request, facts: ImageFacts, node: NodeShape) -> Target | None:
    return _wished(request.labels.get(ISOLATION_LABEL), facts, node)


def _image_isolation(_request: Request, facts: ImageFacts, node: NodeShape) -> Target | None:
    return _wished(facts.isolation, facts, node)


def _image_marker(_request: Request, facts: ImageFacts, node: NodeShape) -> Target | None:
    return _attached(_MARKERS, facts.marker, node)


def _task_platform(request: Request, _facts: ImageFacts, node: NodeShape) -> Target | None:
    if request.platform is None or request.platform.os is None:
        return None
    return _runs(request.platform.os, node) or _elsewhere(request, request.platform.os, "the task's platform")


def _image_os(request: Request, facts: ImageFacts, node: NodeShape) -> Target | None:
    if facts.os is None:
        return None
    return _runs(facts.os, node) or _elsewhere(request, facts.os, f"image {request.image!r}")


def _default(node: NodeShape) -> Target:
    return Target.VZ_LINUX if Target.VZ_LINUX in node.attached else Target.PRIMARY


_RULES: Final[Mapping[Rule, Callable[[Request, ImageFacts, NodeShape], Target | None]]] = {
    Rule.TASK_RUNTIME: _task_runtime,
    Rule.TASK_LABEL: _task_label,
    Rule.IMAGE_ISOLATION: _image_isolation,
    Rule.IMAGE_MARKER: _image_marker,
    Rule.TASK_PLATFORM: _task_platform,
    Rule.IMAGE_OS: _image_os,
}


def _wished(word: str | None, facts: ImageFacts, node: NodeShape) -> Target | None:
    target = _attached(_WISHES, word, node)
    return _sandbox(facts, node) if target is Target.PRIMARY else target


def _attached(words: Mapping[str, Target], word: str | None, node: NodeShape) -> Target | None:
    """The target that ``word`` names, in any ASCII case, if the node has it. Look-alikes that Unicode would fold name nothing."""
    target = words.get(word.lower()) if word and word.isascii() else None
    return target if target in node.attached else None


def _sandbox(facts: ImageFacts, node: NodeShape) -> Target:
    return _default(node) if facts.os is OS.LINUX else Target.PRIMARY


def _runs(os: OS, node: NodeShape) -> Target | None:
    """What runs containers of ``os`` here. A primary that is not Linux takes all else that is not Linux: only it can tell whether it can."""
    if node.native_os is OS.LINUX:
        return Target.PRIMARY if os is OS.LINUX else None
    if os is not OS.LINUX:
        return Target.PRIMARY
    return next((guest for guest in (Target.VZ_LINUX, Target.DELEGATE) if guest in node.attached), None)


def _elsewhere(request: Request, os: OS, what: str) -> NoReturn:
    raise RouteToPeer(request.service, os, f"{what} says {os}, and no target of this node runs {os}; add a guest for it, or a node")
