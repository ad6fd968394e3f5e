"""The readable twin of ``_native/place.pxd``: it asks about every line, which is what the compiled one's answers are equal to."""

from __future__ import annotations

from collections.abc import Callable

MAX_COUNTS = 64
Ask = Callable[[bytes, int, bool], tuple[bytes, int, bytes | None]]


class JobLines:
    """Answers chunks of job lines. ``ask(line, number, plain)`` tells what is not known yet; one thread at a time.

    It returns the answer's bytes, the counter to add to, and, for a plain line whose like may be answered alike, the answer with a byte 1
    where the id stands and a byte 2 where the line's number does, else ``None``.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._counts = [0] * MAX_COUNTS

    @property
    def counts(self) -> list[int]:
        return self._counts.copy()

    def answer(self, chunk: bytes, first: int) -> bytes:
        """The answers, in order, to the lines of ``chunk``, of which the first has the number ``first``."""
        answers = []
        for number, line in enumerate(chunk.removesuffix(b"\n").split(b"\n") if chunk else (), first):
            answer, counter, _ = self._ask(line, number, False)
            self._counts[counter] += 1
            answers.append(answer)
        return b"".join(answers)


def line_count(chunk: bytes) -> int:
    """How many lines end in ``chunk``."""
    return chunk.count(b"\n")
