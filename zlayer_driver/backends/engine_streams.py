"""What an engine tells of a container as it runs: ``/containers/ID/stats`` and ``/logs``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

from zlayer_driver.backends.engine_api import Api, Query
from zlayer_driver.backends.engine_framing import documents, frames
from zlayer_driver.errors import EngineError, NotFound
from zlayer_driver.readings import Channel, LogChunk, LogLine, LogOptions, UsageSample

_LONGEST_ZONE = 6  # of a time such as 2026-11-24T18:00:01.649919745+02:00


async def sample(api: Api, container: str) -> UsageSample:
    """Now; `NotFound` if it does not run."""
    query: Query = {"stream": "false", "one-shot": "true"}
    return _sample(await api.call("GET", f"/containers/{container}/stats", query=query, container=container), container)


async def samples(api: Api, container: str) -> AsyncIterator[UsageSample]:
    """One a second, until it ends."""
    try:
        async with api.stream("GET", f"/containers/{container}/stats", query={"stream": "true"}, container=container) as answer:
            async for doc in documents(answer.aiter_bytes()):
                yield _sample(doc, container)
    except NotFound:
        return  # it ended: so does the stream


def _sample(doc: dict[str, Any], container: str) -> UsageSample:
    """From a document of Docker's stats. Of a container that does not run it has a time, and nothing else."""
    try:
        cpu, memory = doc["cpu_stats"], doc["memory_stats"]
        if "usage" not in memory:
            raise NotFound(container, "it does not run")
        throttling, details = cpu.get("throttling_data") or {}, memory.get("stats") or {}
        networks = (doc.get("networks") or {}).values()
        blocks = (doc.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ()
        return UsageSample(
            at=parse_time(doc["read"]),
            cpu_total_ns=int(cpu["cpu_usage"]["total_usage"]),
            cpu_system_ns=int(cpu["cpu_usage"]["usage_in_kernelmode"]),
            online_cpus=int(cpu.get("online_cpus") or 1),
            memory_bytes=int(memory["usage"]),
            memory_limit_bytes=int(memory.get("limit") or 0),
            net_rx_bytes=sum(int(network["rx_bytes"]) for network in networks),
            net_tx_bytes=sum(int(network["tx_bytes"]) for network in networks),
            block_read_bytes=sum(int(entry["value"]) for entry in blocks if entry["op"].lower() == "read"),
            block_write_bytes=sum(int(entry["value"]) for entry in blocks if entry["op"].lower() == "write"),
            pids=int((doc.get("pids_stats") or {}).get("current") or 0),
            memory_rss_bytes=details.get("rss", details.get("anon")),
            memory_cache_bytes=details.get("cache", details.get("file")),
            memory_peak_bytes=memory.get("max_usage"),
            cpu_throttled_periods=throttling.get("throttled_periods"),
            cpu_throttled_ns=throttling.get("throttled_time"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"stats of container {container}", f"the engine sends what is none: {error!r}") from error


def parse_time(text: str) -> datetime:
    """RFC 3339 as Go writes it, with up to nine digits of a second; in UTC."""
    zone = "+00:00" if text.endswith("Z") else text[-_LONGEST_ZONE:]
    seconds, _, fraction = text.removesuffix("Z").removesuffix(zone).partition(".")
    return datetime.fromisoformat(f"{seconds}.{fraction[:6]:0<6}{zone}").astimezone(UTC)


async def log_lines(api: Api, container: str, tail: int | None) -> Sequence[LogLine]:
    """From the engine's own copy, which is of a bounded size."""
    if tail == 0:
        return []
    found: list[LogLine] = []
    open_ends: dict[Channel, str] = {}
    async for chunk in log_chunks(api, container, LogOptions(timestamps=True, tail=tail)):
        text = open_ends.pop(chunk.channel, "") + chunk.data.decode("utf-8", "replace")
        whole, newline, _ = text.partition("\n")
        if newline:
            found.append(LogLine(chunk.channel, whole, chunk.at or datetime.now(UTC)))
        else:
            open_ends[chunk.channel] = whole
    return found + [LogLine(channel, text, datetime.now(UTC)) for channel, text in open_ends.items()]


async def log_chunks(api: Api, container: str, options: LogOptions) -> AsyncIterator[LogChunk]:
    neither = not (options.stdout or options.stderr)
    query: dict[str, str | int] = {
        "stdout": int(options.stdout or neither),
        "stderr": int(options.stderr or neither),
        "follow": int(options.follow),
        "timestamps": int(options.timestamps),
        "tail": "all" if options.tail is None else options.tail,
        **{key: value for key, value in (("since", options.since), ("until", options.until)) if value is not None},
    }
    async with api.stream("GET", f"/containers/{container}/logs", query=query, container=container) as answer:
        async for channel, data in frames(answer.aiter_bytes()):
            if options.timestamps:
                at, _, rest = data.partition(b" ")
                yield LogChunk(channel, rest, parse_time(at.decode("ascii", "replace")))
            else:
                yield LogChunk(channel, data)
