"""A whole batch, in chunks of lines: memory does not grow with it, and chunks are answered side by side, in order."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from pydantic import Field

from zlayer_driver import fastpath
from zlayer_driver.config import Block, OperatingSystem
from zlayer_driver.errors import ConfigError, DriverError
from zlayer_driver.model import ImageFacts
from zlayer_driver.nomad.placement import MAX_LINE_BYTES, OUTCOMES, Answer, Decider, parse_job, read_line

_CHUNK_BYTES = 1 << 18  # memory for as much is used again and again; for more, the C library goes to the kernel each time
Chunk = tuple[bytes, int]


class FactsLine(Block):
    """What is known of one image."""

    image: str = Field(min_length=1, description="Image reference, in any spelling")
    os: OperatingSystem | None = Field(None, description="Operating system in the image's config: linux, windows or darwin")
    marker: str | None = Field(None, description="The manifest's annotation com.zlayer.runtime")
    isolation: str | None = Field(None, description="The config's label com.zlayer.isolation")


def read_facts(path: Path) -> dict[str, ImageFacts]:
    """Facts by canonical reference, from a file of one `FactsLine` a line."""
    found: dict[str, ImageFacts] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                facts = parse_job(FactsLine, read_line(line)) if line.strip() else None
            except DriverError as error:
                raise ConfigError(f"{path}, line {number}: {error}") from error
            if facts is not None:
                found[fastpath.canonical(facts.image)] = ImageFacts(facts.os, facts.marker, facts.isolation)
    return found


def chunks(file: BinaryIO) -> Iterator[Chunk]:
    """Whole lines, and the number of the first; of a line that is too long, enough to tell that it is."""
    memory, rest, number = bytearray(_CHUNK_BYTES), b"", 1
    piece = memoryview(memory)
    while size := file.readinto1(memory):  # type: ignore[attr-defined]  # every buffered binary file has it, and typeshed's BinaryIO not
        end = memory.rfind(b"\n", 0, size) + 1
        if end:
            lines = b"".join((rest, piece[:end]))
            yield lines, number
            number += fastpath.line_count(lines)
            rest = bytes(piece[end:size])
        else:
            rest = b"".join((rest, piece[:size]))[: MAX_LINE_BYTES + 1]
    if rest:
        yield rest, number


class Batch:
    """Answers chunks with up to ``workers`` threads; ``counts`` has the outcomes so far, by (target, rule) or ("none", kind of error)."""

    def __init__(self, decider: Decider, workers: int = 1) -> None:
        self._lines = fastpath.JobLines(decider.tell, decider.know)
        self._workers = workers

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        counts = self._lines.counts
        return Counter({outcome: counts[number] for outcome, number in OUTCOMES.items() if number and counts[number]})

    def answers(self, work: Iterable[Chunk]) -> Iterator[memoryview]:
        """The answers to each chunk, in order; each is good until the next is asked for."""
        for memory, size in self._answered(work):
            with memoryview(memory)[:size] as block:
                yield block

    def _answered(self, work: Iterable[Chunk]) -> Iterator[tuple[bytearray, int]]:
        """Memory, used again and again, and how much of it is answers: threads that ask the kernel for fresh memory wait for each other."""
        if self._workers == 1:
            memory = bytearray()
            yield from ((memory, self._lines.answer_into(chunk, number, memory)) for chunk, number in work)
            return
        ahead, spare = deque[tuple[bytearray, Future[int]]](), list[bytearray]()
        with ThreadPoolExecutor(self._workers) as pool:
            for chunk, number in work:
                memory = spare.pop() if spare else bytearray()
                ahead.append((memory, pool.submit(self._lines.answer_into, chunk, number, memory)))
                if len(ahead) > 2 * self._workers:
                    memory, size = ahead.popleft()
                    yield memory, size.result()
                    spare.append(memory)
            yield from ((memory, size.result()) for memory, size in ahead)


def answers(file: BinaryIO, decider: Decider) -> Iterator[Answer]:
    """One answer a line, in order, as values."""
    for block in Batch(decider).answers(chunks(file)):
        yield from map(json.loads, bytes(block).splitlines())
