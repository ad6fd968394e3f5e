"""What a container in a VM uses: as its guest says, who is not trusted, and at most what the node has given to the VM."""

from __future__ import annotations

from datetime import UTC, datetime

from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.backends.vm_exec import call
from zlayer_driver.errors import InternalError
from zlayer_driver.guest.frames import BrokenFrames, GuestUsage, Kind
from zlayer_driver.host import cgroups, usage
from zlayer_driver.host.usage import GroupUsage
from zlayer_driver.readings import ProcessUsage, UsageSample


async def read(bundle: Bundle) -> GuestUsage:
    """`NotFound` if the VM is gone."""
    answer = await call(bundle, Kind.PING)
    try:
        told = GuestUsage.parse(answer.payload)
    except BrokenFrames as error:
        raise InternalError(f"the guest of {bundle.id!r} tells its usage in no way that is known: {error}") from error
    return bounded(told, usage.read(cgroups.trees(), bundle.cgroup))


def bounded(told: GuestUsage, given: GroupUsage) -> GuestUsage:
    """Where the node does not count, the guest's word stands."""
    cpu_us = given.cpu_ns // 1000 or told.cpu_us
    memory = given.memory_bytes or told.memory_bytes
    peak = max(memory, given.memory_peak_bytes or told.memory_peak_bytes)
    held = {"memory_bytes": memory, "rss_bytes": memory, "cache_bytes": memory, "kernel_bytes": memory, "memory_peak_bytes": peak}
    processes = tuple(
        (pid, min(user_ns, cpu_us * 1000), min(system_ns, cpu_us * 1000), min(rss, memory))
        for pid, user_ns, system_ns, rss in told.processes
    )
    return told._replace(
        cpu_us=min(told.cpu_us, cpu_us),
        cpu_system_us=min(told.cpu_system_us, cpu_us),
        processes=processes,
        **{name: min(getattr(told, name), most) for name, most in held.items()},
    )


def sample(used: GuestUsage) -> UsageSample:
    return UsageSample(
        at=datetime.now(UTC),
        cpu_total_ns=used.cpu_us * 1000,
        cpu_system_ns=used.cpu_system_us * 1000,
        cpu_throttled_periods=used.throttled_periods,
        cpu_throttled_ns=used.throttled_us * 1000,
        memory_bytes=used.memory_bytes,
        memory_limit_bytes=used.memory_limit_bytes,
        memory_peak_bytes=used.memory_peak_bytes,
        memory_rss_bytes=used.rss_bytes,
        memory_cache_bytes=used.cache_bytes,
        memory_kernel_bytes=used.kernel_bytes,
        memory_swap_bytes=used.swap_bytes,
        pids=used.pids,
        processes={pid: ProcessUsage(*times_and_memory) for pid, *times_and_memory in used.processes},
    )
