"""What a guest says that it uses is never more than its VM was given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zlayer_driver.backends.vm_usage import bounded
from zlayer_driver.guest.frames import GuestUsage
from zlayer_driver.host.usage import GroupUsage

COUNT = st.integers(0, 2**64 - 1)
ROWS = st.lists(st.tuples(COUNT, COUNT, COUNT, COUNT), max_size=3).map(tuple)
TOLD = st.tuples(*[COUNT] * (len(GuestUsage._fields) - 1), ROWS).map(GuestUsage._make)
UNCOUNTED = dict.fromkeys(GroupUsage.__dataclass_fields__)


def host(cpu_ns: int, memory_bytes: int, memory_peak_bytes: int | None) -> GroupUsage:
    counts = {"cpu_ns": cpu_ns, "memory_bytes": memory_bytes, "memory_peak_bytes": memory_peak_bytes}
    return GroupUsage(**UNCOUNTED | counts)  # type: ignore[arg-type]  # what nobody looks at


@given(TOLD, st.integers(1000, 2**60), st.integers(1, 2**40), st.integers(0, 2**40))
def test_no_more_than_the_node_gave(told: GuestUsage, cpu_ns: int, memory: int, more: int) -> None:
    found = bounded(told, host(cpu_ns, memory, memory + more))
    cpu_us = cpu_ns // 1000
    assert found.cpu_us == min(told.cpu_us, cpu_us)
    assert found.cpu_system_us <= cpu_us
    assert found.memory_bytes == min(told.memory_bytes, memory)
    assert max(found.rss_bytes, found.cache_bytes, found.kernel_bytes) <= memory
    assert found.memory_peak_bytes <= memory + more
    assert all(max(user, system) <= cpu_us * 1000 and rss <= memory for _, user, system, rss in found.processes)
    assert [row[0] for row in found.processes] == [row[0] for row in told.processes]


@given(TOLD)
def test_where_the_node_does_not_count_the_guests_word_stands(told: GuestUsage) -> None:
    found = bounded(told, host(0, 0, None))
    assert (found.cpu_us, found.memory_bytes) == (told.cpu_us, told.memory_bytes)
