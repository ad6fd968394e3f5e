"""Usage samples as the statistics that Nomad shows: rates out of counters, and CPU time in the MHz that it schedules by."""

from __future__ import annotations

from datetime import timedelta

from zlayer_driver.readings import UsageSample
from zlayer_driver.wire._gen import base_pb2
from zlayer_driver.wire._gen import task_pb2 as task
from zlayer_driver.wire.replies import timestamp

# A sample that is a little early is not worth losing an interval for.
_EARLY = 0.9


def core_mhz(topology: base_pb2.ClientTopology) -> float:
    """MHz of one core: Nomad's total, measured or set by the operator, over the cores it schedules on; 0 where it does not tell."""
    speeds = [core.base_speed or core.max_speed or core.guess_speed for core in topology.cores if not core.disable]
    return (topology.override_total_compute or sum(speeds)) / len(speeds) if speeds else 0.0


class Meter:
    """One client's readings of one task. The first has no rates yet, and says so by leaving them out of the measured fields."""

    def __init__(self, core_mhz: float, interval_s: float) -> None:
        self._core_mhz = core_mhz
        self._spacing = timedelta(seconds=interval_s * _EARLY)
        self._last: UsageSample | None = None

    def due(self, sample: UsageSample) -> bool:
        return self._last is None or sample.at - self._last.at >= self._spacing

    def message(self, sample: UsageSample) -> task.TaskStats:
        """Always with a time and a total: the agent reads both unchecked."""
        usage = task.TaskResourceUsage(cpu=self._cpu(sample), memory=_memory(sample))
        self._last = sample
        return task.TaskStats(timestamp=timestamp(sample.at), agg_resource_usage=usage)

    def _cpu(self, sample: UsageSample) -> task.CPUUsage:
        last = self._last
        elapsed_ns = (sample.at - last.at) / timedelta(microseconds=1) * 1000 if last else 0
        if last is None or elapsed_ns <= 0 or sample.cpu_total_ns < last.cpu_total_ns:
            return task.CPUUsage()
        percent = (sample.cpu_total_ns - last.cpu_total_ns) / elapsed_ns * 100
        system = (sample.cpu_system_ns - last.cpu_system_ns) / elapsed_ns * 100
        return task.CPUUsage(
            percent=percent,
            system_mode=system,
            user_mode=percent - system,
            total_ticks=percent / 100 * self._core_mhz,
            measured_fields=[task.CPUUsage.SYSTEM_MODE, task.CPUUsage.USER_MODE, task.CPUUsage.TOTAL_TICKS, task.CPUUsage.PERCENT],
        )


def _memory(sample: UsageSample) -> task.MemoryUsage:
    return task.MemoryUsage(usage=sample.memory_bytes, measured_fields=[task.MemoryUsage.USAGE])
