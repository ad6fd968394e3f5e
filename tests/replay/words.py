"""The recordings' vocabulary: ids, errors and sentences, between theirs and ours.

Sentences that the reference composes itself have a counterpart of ours each, by an exact table: a sentence that is altered on either side
matches nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from zlayer_driver.errors import (
    ConfigError,
    CreateFailed,
    DriverError,
    InternalError,
    InvalidSpec,
    NetworkError,
    NotFound,
    PullFailed,
    RouteToPeer,
    TimedOut,
    Unsupported,
    WrongPlatform,
)
from zlayer_driver.model import OS, ImageFacts, Isolation, Platform, TaskSpec

Json = Any
Row = Mapping[str, Json]

_WSL = "but this node has no WSL2 delegate configured; enable `--install-wsl yes` on this node or add a Linux peer to the cluster"
_NO_LINUX = "says linux, and no target of this node runs linux; add a guest for it, or a node"
_SENTENCES: Final = {  # ours: theirs
    "this node has no record of it": "no dispatch record in CompositeRuntime",
    f"the task's platform {_NO_LINUX}": f"spec.platform.os = linux {_WSL}",
    **{
        f"the task asks for runtime {runtime}, and this node has no {target} backend": (
            f"runtime `{runtime}` requested but the {theirs} delegate is not available on this node"
        )
        for runtime, target, theirs in (("vz", "vz", "native-VZ"), ("vz-linux", "vz_linux", "VZ-Linux"), ("vm", "delegate", "libkrun"))
    },
}
_DISPLAY: Final = {
    "NotFound": "Container '{container}' not found: {reason}",
    "CreateFailed": "Failed to create container '{id}': {reason}",
    "PullFailed": "Failed to pull image '{image}': {reason}",
    "Timeout": "Timeout after {seconds:g}s",
    "RouteToPeer": "route-to-peer: service '{service}' requires OS '{required_os}' on another node: {reason}",
    "WrongPlatform": "wrong-platform: {runtime} runtime cannot handle image '{image}' (expected os={expected}, got os={actual})",
    "Unsupported": "Operation not supported by this runtime: {text}",
    "Internal": "Internal error: {text}",
    "InvalidSpec": "Invalid spec: {text}",
    "Network": "Network error: {text}",
    "Configuration": "Configuration error: {text}",
}
_OS_OF_SPEC: Final = {"linux": OS.LINUX, "windows": OS.WINDOWS, "macos": OS.DARWIN}


def task_id(container: Row) -> str:
    """One id of ours for each of theirs, also where two of theirs are displayed alike."""
    return json.dumps([container["service"], container.get("role", "default"), container["replica"], container.get("node_id", 0)])


def displayed(task: str) -> str:
    service, role, replica, node = json.loads(task)
    return f"{service}-rep-{replica}" if (role, node) == ("default", 0) else f"{service}-{role}-{replica}-on-{node}"


def spec_of(task: str, spec: Row) -> TaskSpec:
    service, platform = json.loads(task)[0], spec.get("platform")
    return TaskSpec(
        id=task,
        name=service,
        service=service,
        image=spec["image"],
        runtime=Isolation(spec["runtime"]) if spec.get("runtime") else None,
        labels=spec.get("labels") or {},
        platform=Platform(_OS_OF_SPEC[platform["os"]], platform["arch"]) if platform else None,
    )


def facts_of(facts: Row) -> ImageFacts:
    return ImageFacts(OS(facts["os"]) if facts.get("os") else None, facts.get("marker"), facts.get("isolation"))


def facts_told(facts: ImageFacts) -> Json:
    return {"os": facts.os, "marker": facts.marker, "isolation": facts.isolation}


def programmed(error: Row) -> DriverError:
    """The error that a recording runtime was programmed to raise."""
    text = error["text"]
    kinds: dict[str, Callable[[], DriverError]] = {
        "NotFound": lambda: NotFound("prog-c", text),
        "PullFailed": lambda: PullFailed("prog-i", text),
        "CreateFailed": lambda: CreateFailed("prog-id", text),
        "Timeout": lambda: TimedOut(text, 1.5),
        "InvalidSpec": lambda: InvalidSpec(text),
        "Network": lambda: NetworkError(text),
        "Configuration": lambda: ConfigError(text),
        "Unsupported": lambda: Unsupported(text),
        "Internal": lambda: InternalError(text),
        "RouteToPeer": lambda: RouteToPeer("prog-s", "linux", text),
        "WrongPlatform": lambda: WrongPlatform("prog-rt", "windows", "linux", text),
    }
    return kinds[error["kind"]]()


def error_told(error: DriverError, image: str) -> Json:
    """An error of ours in the recordings' form. ``image`` is the one that the call was about."""
    sentences = {**_SENTENCES, f"image {image!r} {_NO_LINUX}": f"image '{image}' manifest reports os=linux {_WSL}"}
    fields: dict[str, Json] = {"timeout_ms": round(error.timeout_s * 1000)} if isinstance(error, TimedOut) else dict(error.fields())
    fields = fields or {"text": error.message}
    for field in ("text", "reason"):
        if field in fields:
            fields[field] = sentences.get(fields[field], fields[field])
    if fields.get("container", "").startswith("["):
        fields["container"] = displayed(fields["container"])
    message = _DISPLAY[error.kind].format(**fields, seconds=fields.get("timeout_ms", 0) / 1000)
    return {"kind": error.kind, "message": message, **fields}


def moment(text: str) -> datetime:
    """A time of the recordings, which may have nanoseconds."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}+00:00")


def moment_told(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
