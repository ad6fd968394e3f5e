"""Usage samples as the statistics that Nomad shows: rates out of counters, and CPU time in the MHz that it schedules by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from zlayer_driver.readings import ProcessUsage, UsageSample
from zlayer_driver.wire._gen import base_pb2
from zlayer_driver.wire._gen import task_pb2 as task
from zlayer_driver.wire.replies import timestamp

# A sample that is a little early is not worth losing an interval for.
_EARLY = 0.9


def core_mhz(topology: base_pb2.ClientTopology) -> float:
    """MHz of one core: Nomad's total, measured or set by the operator, over the cores it schedules on; 0 where it does not tell."""
    speeds = [core.base_speed or core.max_speed or core.guess_speed for core in topology.cores if not core.disable]
    return (topology.override_total_compute or sum(speeds)) / len(speeds) if speeds else 0.0


@dataclass(frozen=True, slots=True)
class _Cpu:
    """CPU time used by now, of a task or of one of its processes."""

    total_ns: int
    system_ns: int


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
        last, self._last = self._last, sample
        elapsed_ns = (sample.at - last.at) / timedelta(microseconds=1) * 1000 if last else 0.0
        cpu = self._rates(_of_task(sample), _of_task(last) if last else None, elapsed_ns)
        _throttling(cpu, sample)
        by_pid = {}
        for pid, used in sample.processes.items():
            before = last.processes.get(pid) if last else None
            rates = self._rates(_of_process(used), _of_process(before) if before else None, elapsed_ns)
            by_pid[str(pid)] = task.TaskResourceUsage(cpu=rates, memory=_memory(rss=used.rss_bytes))
        return task.TaskStats(
            timestamp=timestamp(sample.at),
            agg_resource_usage=task.TaskResourceUsage(cpu=cpu, memory=_memory_of_task(sample)),
            resource_usage_by_pid=by_pid,
        )

    def _rates(self, now: _Cpu, last: _Cpu | None, elapsed_ns: float) -> task.CPUUsage:
        """Percent are of one core. A counter that went back is another's: a pid may be used again."""
        if last is None or elapsed_ns <= 0 or now.total_ns < last.total_ns:
            return task.CPUUsage()
        percent = (now.total_ns - last.total_ns) / elapsed_ns * 100
        # The kernel splits the whole by ticks, so that a part may run ahead of it or step back.
        system = min(max(0.0, (now.system_ns - last.system_ns) / elapsed_ns * 100), percent)
        usage = task.CPUUsage(percent=percent, system_mode=system, user_mode=percent - system)
        usage.measured_fields.extend([task.CPUUsage.SYSTEM_MODE, task.CPUUsage.USER_MODE, task.CPUUsage.PERCENT])
        if self._core_mhz:
            usage.total_ticks = percent / 100 * self._core_mhz
            usage.measured_fields.append(task.CPUUsage.TOTAL_TICKS)
        return usage


def _of_task(sample: UsageSample) -> _Cpu:
    return _Cpu(sample.cpu_total_ns, sample.cpu_system_ns)


def _of_process(used: ProcessUsage) -> _Cpu:
    return _Cpu(used.cpu_user_ns + used.cpu_system_ns, used.cpu_system_ns)


def _throttling(cpu: task.CPUUsage, sample: UsageSample) -> None:
    if sample.cpu_throttled_periods is not None and sample.cpu_throttled_ns is not None:
        cpu.throttled_periods, cpu.throttled_time = sample.cpu_throttled_periods, sample.cpu_throttled_ns
        cpu.measured_fields.extend([task.CPUUsage.THROTTLED_PERIODS, task.CPUUsage.THROTTLED_TIME])


def _memory_of_task(sample: UsageSample) -> task.MemoryUsage:
    return _memory(
        rss=sample.memory_rss_bytes,
        cache=sample.memory_cache_bytes,
        max_usage=sample.memory_peak_bytes,
        kernel_usage=sample.memory_kernel_bytes,
        kernel_max_usage=sample.memory_kernel_peak_bytes,
        usage=sample.memory_bytes,
        swap=sample.memory_swap_bytes,
    )


def _memory(**found: int | None) -> task.MemoryUsage:
    measured = {name: value for name, value in found.items() if value is not None}
    return task.MemoryUsage(**measured, measured_fields=[name.upper() for name in measured])
