"""Streams that end, made of one reading, for containers whose backends have no stream of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Final

from zlayer_driver.readings import Channel, LogChunk, LogLine, LogOptions, Usage, UsageSample

U64_MAX: Final = 2**64 - 1  # counters travel as unsigned 64-bit numbers
_USUAL_LINES: Final = 1000


def line_count(options: LogOptions) -> int:
    """How many captured lines stand in for a stream."""
    return _USUAL_LINES if options.tail is None else options.tail


async def log_chunks(lines: Sequence[LogLine], options: LogOptions) -> AsyncIterator[LogChunk]:
    """One chunk a line, its line end put back. Of ``options`` only the channels and the timestamps count."""
    asked = {channel for channel, wanted in ((Channel.STDOUT, options.stdout), (Channel.STDERR, options.stderr)) if wanted}
    for line in lines:
        if line.channel in (asked or Channel):
            yield LogChunk(line.channel, f"{line.message}\n".encode(errors="surrogateescape"), line.at if options.timestamps else None)


async def usage_samples(usage: Usage) -> AsyncIterator[UsageSample]:
    """One sample, of now. What a reading does not tell is 0, but for one CPU, by which shares are divided."""
    yield UsageSample(
        at=datetime.now(UTC),
        cpu_total_ns=min(usage.cpu_us * 1000, U64_MAX),
        memory_bytes=usage.memory_bytes,
        memory_limit_bytes=usage.memory_limit_bytes,
    )
