"""Decisions for many requests: each is asked about, which is what the compiled twin's answers are equal to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeVar

from zlayer_driver.errors import DriverError
from zlayer_driver.model import ImageFacts, Isolation, Platform

MAX_COUNTS = 64
Ask = Callable[[bytes, int, bool], tuple[bytes, int, bool]]
Know = Callable[[str], tuple[bytes, int] | None]


class Request(Protocol):
    """What of a task decides."""

    @property
    def runtime(self) -> Isolation | None: ...

    @property
    def labels(self) -> Mapping[str, str]: ...

    @property
    def platform(self) -> Platform | None: ...


R = TypeVar("R", bound=Request)
T = TypeVar("T")


def choose_many(requests: Iterable[R], facts: Iterable[ImageFacts], choose: Callable[[R, ImageFacts], T]) -> list[T | DriverError]:
    """What ``choose(request, facts)`` says of each request and its image's facts; a `DriverError` stands in the place of what it refuses.

    Requests that agree in runtime, isolation label, platform and facts have one choice: the first is asked about.
    """

    def told(request: R, known: ImageFacts) -> T | DriverError:
        try:
            return choose(request, known)
        except DriverError as error:
            return error

    return [told(request, known) for request, known in zip(requests, facts, strict=True)]


class JobLines:
    """Answers chunks of job lines; threads may share it.

    ``know(image)`` gives an image's canonical name and a number that stands for all that is known of it, or ``None``.
    ``ask(line, number, plain)`` tells the rest: the answer's bytes, the counter to add to, and whether these bytes are a model. All plain
    lines with the same runtime, label, platform and number of facts have this answer, with the id where the model has a byte 1, the line's
    number where it has a byte 2, and the image's canonical name where it has a byte 3.
    """

    def __init__(self, ask: Ask, know: Know) -> None:  # noqa: ARG002  # only the compiled one keeps what it knows
        self._ask = ask
        self._counts = [0] * MAX_COUNTS
        self._lock = threading.Lock()

    @property
    def counts(self) -> list[int]:
        return self._counts.copy()

    def answer(self, chunk: bytes | memoryview, first: int) -> bytes:
        """The answers, in order, to the lines of ``chunk``, of which the first has the number ``first``."""
        answers, counters = [], []
        for number, line in enumerate(bytes(chunk).removesuffix(b"\n").split(b"\n") if chunk else (), first):
            answer, counter, _ = self._ask(line, number, False)
            answers.append(answer)
            counters.append(counter)
        with self._lock:
            for counter in counters:
                self._counts[counter] += 1
        return b"".join(answers)

    def answer_into(self, chunk: bytes | memoryview, first: int, answers: bytearray) -> int:
        """How many of the first bytes of ``answers`` are now the answers to ``chunk``. It grows as needed, and never shrinks."""
        text = self.answer(chunk, first)
        answers[: len(text)] = text
        return len(text)


def line_count(chunk: bytes | memoryview) -> int:
    """How many lines end in ``chunk``."""
    return bytes(chunk).count(b"\n")
