"""What a container uses."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from zlayer_driver.backends.supervised.container import Container
from zlayer_driver.host import cgroups, usage
from zlayer_driver.readings import UsageSample

_INTERVAL_S = 1.0
_FULL_EVERY = 10


def sample(container: Container, trees: cgroups.Trees | None = None) -> UsageSample:
    trees = trees or cgroups.trees()
    used = usage.read(trees, container.bundle.cgroup)
    received, sent = usage.traffic(container.record.init.pid)
    return UsageSample(
        at=datetime.now(UTC),
        cpu_total_ns=used.cpu_ns,
        cpu_system_ns=used.cpu_system_ns,
        online_cpus=len(os.sched_getaffinity(0)),
        memory_bytes=used.memory_bytes,
        memory_limit_bytes=used.memory_limit_bytes or 0,
        net_rx_bytes=received,
        net_tx_bytes=sent,
        block_read_bytes=used.read_bytes,
        block_write_bytes=used.write_bytes,
        pids=used.pids,
        pids_limit=used.pids_limit,
        memory_rss_bytes=used.rss_bytes,
        memory_cache_bytes=used.cache_bytes,
        memory_swap_bytes=used.swap_bytes,
        memory_peak_bytes=used.memory_peak_bytes,
        cpu_throttled_periods=used.throttled_periods,
        cpu_throttled_ns=used.throttled_ns,
        memory_kernel_bytes=used.kernel_bytes,
        memory_kernel_peak_bytes=used.kernel_peak_bytes,
        processes=usage.processes(trees, container.bundle.cgroup),
    )


async def samples(container: Container, interval_s: float = _INTERVAL_S) -> AsyncIterator[UsageSample]:
    """One at once, then one every ``interval_s``, to the container's end.

    A container that has not run since the last sample is not read again, but for every tenth time: most containers of a node are idle.
    """
    trees = cgroups.trees()
    last, age, ended = sample(container, trees), 0, False
    while True:
        yield last
        with suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await container.wait()
                ended = True
        if ended:
            return
        age += 1
        if age < _FULL_EVERY and usage.cpu_ns(trees, container.bundle.cgroup) == last.cpu_total_ns:
            last = replace(last, at=datetime.now(UTC))
        else:
            last, age = sample(container, trees), 0
