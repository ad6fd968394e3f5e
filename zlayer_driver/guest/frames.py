"""Frames between the host and the guest agent; ``agent.h`` is the guest's side, and says what they are."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple, Self

PAYLOAD_MAX = 1 << 16
WINDOW = 1 << 18  # bytes of one stream that its receiver has not taken yet, at most
CHUNK = 1 << 15

_HEADER = struct.Struct("<IHBx")
CREDIT = struct.Struct("<II")  # stream (0 stdout, 1 stderr), bytes; a process's credit for its input has the bytes alone
EXIT = struct.Struct("<III")  # code, signal, whether the guest ran out of memory
SIZE = struct.Struct("<HH")  # rows, columns
NUMBER = struct.Struct("<I")


class Kind(IntEnum):
    SETUP = 1
    START = 2
    INPUT = 3  # empty: the end of it
    SIGNAL = 4
    RESIZE = 5
    CREDIT = 6
    PING = 7
    CLOSE = 8
    CHANGE = 9
    READY = 16
    DONE = 17
    FAILED = 18
    STDOUT = 19
    STDERR = 20
    EXIT = 21
    PONG = 22


_KINDS = frozenset(Kind)


class BrokenFrames(ValueError):
    """Bytes that are no frames, or frames that break the rules."""


class Frame(NamedTuple):
    kind: Kind
    channel: int
    payload: bytes

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """The payload's numbers; `BrokenFrames` if it does not have that layout."""
        if len(self.payload) != layout.size:
            raise BrokenFrames(f"{self.kind.name} frame of {len(self.payload)} bytes")
        return layout.unpack(self.payload)

    def failure(self) -> tuple[int, str]:
        """Of `Kind.FAILED`: errno, and what could not be done."""
        if len(self.payload) < NUMBER.size:
            raise BrokenFrames("FAILED frame without a number")
        return NUMBER.unpack_from(self.payload)[0], self.payload[NUMBER.size :].decode("utf-8", "replace")


def pack(kind: Kind, payload: bytes = b"", *, channel: int = 0) -> bytes:
    if len(payload) > PAYLOAD_MAX:
        raise BrokenFrames(f"{kind.name} frame of {len(payload)} bytes, and {PAYLOAD_MAX} are the most")
    return _HEADER.pack(len(payload), channel, kind) + payload


def fields(pairs: Iterable[tuple[str, str]]) -> bytes:
    """The payload of `Kind.SETUP`, `Kind.CHANGE` or `Kind.START`: letters with their texts, none of which holds a NUL."""
    return b"".join(f"{letter}{text}".encode("utf-8", "surrogateescape") + b"\0" for letter, text in pairs)


class GuestUsage(NamedTuple):
    """Of `Kind.PONG`: microseconds, counts and bytes of the guest's control group, then four numbers a process (`guest/usage.c`)."""

    cpu_us: int
    cpu_system_us: int
    throttled_periods: int
    throttled_us: int
    memory_bytes: int
    memory_limit_bytes: int  # 0: none
    memory_peak_bytes: int
    rss_bytes: int
    cache_bytes: int
    kernel_bytes: int
    swap_bytes: int
    pids: int
    processes: tuple[tuple[int, int, int, int], ...]  # pid in the container, CPU time as user and as system in ns, resident bytes

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        count, odd = divmod(len(payload), 8)
        group = len(cls._fields) - 1
        if odd or count < group or (count - group) % 4:
            raise BrokenFrames(f"PONG frame of {len(payload)} bytes")
        numbers = struct.unpack(f"<{count}Q", payload)
        rest = iter(numbers[group:])
        return cls._make([*numbers[:group], tuple(zip(rest, rest, rest, rest, strict=True))])


class Parser:
    """Makes frames of bytes that come in pieces of any size."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """`BrokenFrames` for what cannot be one; nothing after it is to be believed."""
        self._held += data
        at = 0
        try:
            while len(self._held) - at >= _HEADER.size:
                length, channel, kind = _HEADER.unpack_from(self._held, at)
                if length > PAYLOAD_MAX or kind not in _KINDS:
                    raise BrokenFrames(f"frame of kind {kind} and {length} bytes")
                end = at + _HEADER.size + length
                if len(self._held) < end:
                    break
                payload = bytes(self._held[at + _HEADER.size : end])
                at = end
                yield Frame(Kind(kind), channel, payload)
        finally:
            del self._held[:at]
