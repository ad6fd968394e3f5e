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

_CHUNK_BYTES = 1 << 20  # what with its answers stays in a processor's own cache, and takes far longer to answer than to hand to a thread
Chunk = tuple[bytes | memoryview, int]


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
    """Whole lines, good until the next are asked for, and the number of the first; of a line that is too long, enough to tell that it is."""
    memory = bytearray(MAX_LINE_BYTES + 1 + _CHUNK_BYTES)
    view, rest, number = memoryview(memory), 0, 1
    while size := file.readinto1(view[rest : rest + _CHUNK_BYTES]):  # type: ignore[attr-defined]  # buffered files have it, typeshed's BinaryIO not
        stop = rest + size
        end = memory.rfind(b"\n", rest, stop) + 1
        if end:
            yield view[:end], number
            number += fastpath.line_count(view[:end])
            view[: stop - end] = view[end:stop]
        rest = min(stop - end, MAX_LINE_BYTES + 1)
    if rest:
        yield view[:rest], number


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
        ahead, spare = deque[tuple[_Memory, Future[int]]](), list[_Memory]()
        with ThreadPoolExecutor(self._workers) as pool:
            for chunk, number in work:
                own = spare.pop() if spare else _Memory()
                ahead.append((own, pool.submit(self._lines.answer_into, own.copy(chunk), number, own.answers)))
                if len(ahead) > 2 * self._workers:
                    own, size = ahead.popleft()
                    yield own.answers, size.result()
                    spare.append(own)
            yield from ((own.answers, size.result()) for own, size in ahead)


class _Memory:
    """What a thread reads and writes while the next chunk is read."""

    def __init__(self) -> None:
        self._chunk, self.answers = bytearray(_CHUNK_BYTES), bytearray()

    def copy(self, chunk: bytes | memoryview) -> memoryview:
        if len(chunk) > len(self._chunk):
            self._chunk = bytearray(len(chunk))
        view = memoryview(self._chunk)[: len(chunk)]
        view[:] = chunk
        return view


def answers(file: BinaryIO, decider: Decider) -> Iterator[Answer]:
    """One answer a line, in order, as values."""
    for block in Batch(decider).answers(chunks(file)):
        yield from map(json.loads, bytes(block).splitlines())
