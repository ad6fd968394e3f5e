"""One line of a batch: a job in, a decision out, by the same `choose` as the driver.

A line is a JSON object ``{"id", "image", "runtime"?, "labels"?, "platform"?: {"os", "arch"}}``; further keys are the job's own and pass
unread. An answer is ``{"id", "target", "rule"}`` or ``{"id", "line", "error": {"kind", "message", …}}``, one a line, in order. A line that is
no job gets an error with its number and ``id`` null (or the id, where that could be read), and never stops the rest.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import count, product
from typing import Any, Final, TypeVar

from pydantic import ConfigDict, Field

from zlayer_driver import errors, fastpath
from zlayer_driver.choice import NodeShape, Request, Rule, choose
from zlayer_driver.config import Block, PlatformBlock, StringMap, parse
from zlayer_driver.errors import ConfigError, DriverError, InvalidSpec, RouteToPeer
from zlayer_driver.model import ImageFacts, Isolation, Platform, Target

MAX_LINE_BYTES = 1 << 20
_MAX_ID, _MAX_IMAGE = 512, 2048  # characters
_MAX_TEXT = 2000  # characters of an error's text: a line must not come back whole
_MAX_NUMBERS = 10_000  # of facts that differ
Answer = dict[str, Any]
Facts = Callable[[str], ImageFacts]
Job = TypeVar("Job", bound=Block)
ID_HOLE, LINE_HOLE, IMAGE_HOLE = b"\x01", b"\x02", b"\x03"  # see `fastpath.JobLines`
_KINDS = dict.fromkeys(kind.kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DriverError))

OUTCOMES: Final[dict[tuple[str, str], int]] = {
    outcome: number for number, outcome in enumerate([("", "blank"), *product(Target, Rule), *(("none", kind) for kind in _KINDS)])
}
"""What a line may come to, as (target, rule) or ("none", kind of error), and the counter of each; the first is no answer at all."""


class JobLine(Block):
    """One job of a batch."""

    model_config = ConfigDict(extra="ignore", defer_build=False)  # threads parse by it

    id: str = Field(min_length=1, max_length=_MAX_ID, description="Name of the job, given back in the answer")
    image: str = Field(min_length=1, max_length=_MAX_IMAGE, description="Image reference")
    runtime: Isolation | None = Field(None, description="Isolation target: auto, sandbox, vz, vz-linux or vm")
    labels: StringMap = Field({}, description="Container labels; com.zlayer.isolation chooses a target")
    platform: PlatformBlock | None = Field(None, description="What the image must run on")


class Decider:
    """Decides lines for one node; safe across threads if ``facts`` is."""

    def __init__(self, shape: NodeShape, facts: Facts) -> None:
        self._shape = shape
        self._facts = facts
        self._id, self._line, self._image = (secrets.token_hex(16) for _ in range(3))  # stand for them in models: no line can hold these
        self._numbers: dict[ImageFacts, int] = {}
        self._unused = count()

    def know(self, image: str) -> tuple[bytes, int] | None:
        """An image's canonical name and the number of its facts (see `fastpath.JobLines`)."""
        name = fastpath.canonical(image)
        try:
            facts = self._facts(name)
        except DriverError:
            return None  # `tell` says what is wrong
        if facts not in self._numbers and len(self._numbers) >= _MAX_NUMBERS:
            return None
        return name.encode(), self._numbers.setdefault(facts, next(self._unused))

    def tell(self, line: bytes, number: int, plain: bool) -> tuple[bytes, int, bool]:
        """The answer's bytes and its counter in `OUTCOMES`; for a plain line, if it may be, as a model (see `fastpath.JobLines`)."""
        if not line.strip():
            return b"", 0, False
        document: dict[str, Any] = {}
        try:
            document = read_line(line)
            job = parse_job(JobLine, document)
            request = request_of(job, job.id)
            facts = self._facts(request.image)
        except DriverError as error:
            return encoded(refusal(id_of(document), number, error)), OUTCOMES["none", error.kind], False
        if not plain:
            answer, counter = self._answer(request, facts, number)
            return encoded(answer), counter, False
        answer, counter = self._answer(replace(request, service=self._id, image=self._image), facts, self._line)
        text = encoded(answer).replace(b'"%s"' % self._line.encode(), LINE_HOLE)
        return text.replace(self._id.encode(), ID_HOLE).replace(self._image.encode(), IMAGE_HOLE), counter, True

    def _answer(self, request: Request, facts: ImageFacts, line: int | str) -> tuple[Answer, int]:
        try:
            choice = choose(request, facts, self._shape)
        except (ConfigError, RouteToPeer) as error:
            return refusal(request.service, line, error), OUTCOMES["none", error.kind]
        return {"id": request.service, "target": choice.target, "rule": choice.rule}, OUTCOMES[choice.target, choice.rule]


def read_line(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; `InvalidSpec` says what is wrong with it."""
    if len(line) > MAX_LINE_BYTES:
        raise InvalidSpec(f"the line is longer than {MAX_LINE_BYTES} bytes")
    try:
        document = _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        raise InvalidSpec(f"the line is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InvalidSpec(f"the line is no JSON at character {error.pos}: {error.msg}") from None
    except RecursionError:
        raise InvalidSpec("the line is nested too deeply") from None
    except ValueError as error:
        raise InvalidSpec(str(error)) from None
    if not isinstance(document, dict):
        raise InvalidSpec("the line is no JSON object")
    return document


def parse_job(model: type[Job], document: dict[str, Any]) -> Job:
    """The job that a line describes; keys that ``model`` does not know are left out before anything looks at them."""
    try:
        return parse(model, {key: document[key] for key in model.model_fields if key in document}, what="the line")
    except ConfigError as error:
        raise InvalidSpec(error.message) from None
    except RecursionError:
        raise InvalidSpec("the line is nested too deeply") from None


def request_of(job: JobLine, service: str) -> Request:
    """What of a job decides; ``service`` names it in refusals."""
    platform = Platform(job.platform.os, job.platform.arch) if job.platform else None
    return Request(service=service, image=fastpath.canonical(job.image), runtime=job.runtime, labels=job.labels, platform=platform)


def refusal(name: str | None, line: int | str, error: DriverError) -> Answer:
    fields = {key: shortened(value) for key, value in error.fields().items()}
    return {"id": name, "line": line, "error": {"kind": error.kind, "message": shortened(str(error)), **fields}}


def shortened(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def encoded(answer: Answer) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def id_of(document: dict[str, Any]) -> str | None:
    name = document.get("id")
    return shortened(name) if isinstance(name, str) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shortened(twice)!r} is there twice")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
