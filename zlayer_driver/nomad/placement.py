"""Batch placement: job lines in, decisions out, by the same `choose` as the driver.

A line is a JSON object ``{"id", "image", "runtime"?, "labels"?, "platform"?: {"os", "arch"}}``; further keys are the job's own and pass
unread. An answer is ``{"id", "target", "rule"}`` or ``{"id", "error": {"kind", "message", …}}``, one a line, in order. A line that is no job gets
an error with its number and ``id`` null (or the id, where that could be read), and never stops the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from pydantic import ConfigDict, Field

from zlayer_driver import fastpath
from zlayer_driver.choice import NodeShape, Request, choose
from zlayer_driver.config import Block, PlatformBlock, StringMap, parse
from zlayer_driver.errors import DriverError, InvalidSpec
from zlayer_driver.model import ImageFacts, Isolation, Platform

MAX_LINE_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 16
Answer = dict[str, Any]


class JobLine(Block):
    """One job of a batch."""

    model_config = ConfigDict(extra="ignore")

    id: str = Field(min_length=1, description="Name of the job, given back in the answer")
    image: str = Field(min_length=1, description="Image reference")
    runtime: Isolation | None = Field(None, description="Isolation target: auto, sandbox, vz, vz-linux or vm")
    labels: StringMap = Field({}, description="Container labels; com.zlayer.isolation chooses a target")
    platform: PlatformBlock | None = Field(None, description="What the image must run on")


def answers(lines: BinaryIO, shape: NodeShape, facts: Callable[[str], ImageFacts]) -> Iterator[Answer]:
    """One answer a line, in order; memory does not grow with their number. Blank lines are no jobs."""
    for number, line in enumerate(_bounded_lines(lines), start=1):
        if not line.strip():
            continue
        job: dict[str, Any] = {}
        try:
            job = _document(line)
            yield _decision(parse(JobLine, job, what="job"), shape, facts)
        except DriverError as error:
            name = job.get("id")
            yield {
                "id": name if isinstance(name, str) else None,
                "line": number,
                "error": {"kind": error.kind, "message": str(error), **error.fields()},
            }


def _decision(job: JobLine, shape: NodeShape, facts: Callable[[str], ImageFacts]) -> Answer:
    image = fastpath.canonical(job.image)
    platform = Platform(job.platform.os, job.platform.arch) if job.platform else None
    choice = choose(Request(service=job.id, image=image, runtime=job.runtime, labels=job.labels, platform=platform), facts(image), shape)
    return {"id": job.id, "target": choice.target, "rule": choice.rule}


def _bounded_lines(lines: BinaryIO) -> Iterator[bytes]:
    """Lines without their end; of one that is too long, only its first `MAX_LINE_BYTES` + 1 bytes."""
    while line := lines.readline(MAX_LINE_BYTES + 2):
        rest = line
        while not rest.endswith(b"\n") and (rest := lines.readline(_CHUNK_BYTES)):
            pass
        yield line.rstrip(b"\n")


def _document(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise InvalidSpec(f"the line is longer than {MAX_LINE_BYTES} bytes")
    try:
        job = json.loads(line.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InvalidSpec(f"the line is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InvalidSpec(f"the line is no JSON at character {error.pos}: {error.msg}") from None
    except RecursionError:
        raise InvalidSpec("the line is nested too deeply") from None
    except ValueError as error:
        raise InvalidSpec(str(error)) from None
    if not isinstance(job, dict):
        raise InvalidSpec("the line is no JSON object")
    return job


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for position, (key, _) in enumerate(pairs) if key in dict(pairs[:position]))
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")
