"""The kernel's rtnetlink, in the fewest round trips: messages are sent together on a kept socket, and their acks read together.

Messages come from `zlayer_driver.host.netlink_messages`. A socket belongs to the network namespace in which it was made, for good, and
to one thread at a time. Formats: netlink(7), <linux/netlink.h>.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ERROR, _DONE = 2, 3
_SOL_NETLINK = 270
_CAP_ACK, _EXT_ACK, _STRICT = 10, 11, 12  # short acks, acks with the kernel's reason, filters in dump requests
_TORN, _CAPPED = 0x10, 0x100  # NLM_F_DUMP_INTR: what is dumped changed meanwhile; NLM_F_CAPPED
_TRIES = 10
_REASON = 1  # NLMSGERR_ATTR_MSG
_BUFFER = 1 << 16
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_ROOM = 16 << 20  # for the acks of some ten thousand messages, which the kernel drops where they do not fit; taken only as they come
NETFILTER, GENERIC = 12, 16  # further families of sockets


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages, joined; ``names`` says of each what it does, as an error completes «cannot …». Each asks for an ack."""

    data: bytes
    names: tuple[str, ...]

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Self:
        return cls(b"".join(batch.data for batch in batches), tuple(name for batch in batches for name in batch.names))


class Template:
    """A batch encoded once, whose blanks are filled in for each use.

    ``blanks`` gives for each name the bytes that stand for it in the batch, so long and so odd that nothing else is like them.
    """

    def __init__(self, batch: Batch, blanks: Mapping[str, bytes]) -> None:
        self._batch = batch
        self._places = {name: (len(blank), tuple(_occurrences(batch.data, blank))) for name, blank in blanks.items()}
        if missing := [name for name, (_, places) in self._places.items() if not places]:
            raise ValueError(f"the batch has no blank for {missing}")

    def fill(self, values: Mapping[str, bytes]) -> Batch:
        """The batch with a value of the right length in every blank."""
        data = bytearray(self._batch.data)
        for name, (length, places) in self._places.items():
            value = values[name]
            if len(value) != length:
                raise ValueError(f"{name} takes {length} bytes, not {len(value)}")
            for place in places:
                data[place : place + length] = value
        return Batch(bytes(data), self._batch.names)


def _occurrences(data: bytes, part: bytes) -> Iterator[int]:
    place = data.find(part)
    while place >= 0:
        yield place
        place = data.find(part, place + len(part))


class Socket:
    """A netlink socket in the network namespace of the thread that makes it. Use it as a context manager, or `close` it."""

    def __init__(self, family: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        for option in (_CAP_ACK, _EXT_ACK, _STRICT):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        for option in (_SO_SNDBUFFORCE, _SO_RCVBUFFORCE):
            self._socket.setsockopt(socket.SOL_SOCKET, option, _ROOM)
        self._socket.bind((0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, batch: Batch) -> None:
        """Has the kernel do all of it, in order; the `OSError` of the first message that failed, named in ``filename``.

        A failure does not keep the messages after it from being done.
        """
        if not batch.names:
            return
        self._socket.send(batch.data)
        failed: OSError | None = None
        acks = self._messages()
        for name in batch.names:
            try:
                kind, flags, payload = next(acks)
            except BlockingIOError:
                if failed is None:
                    raise
                break  # a transaction that is refused as a whole is acknowledged once
            if kind != _ERROR:
                raise OSError(errno.EPROTO, f"a message of type {kind} came instead of an ack", name)
            failed = failed or _failure(payload, flags, name)
        if failed:
            raise failed

    def dump(self, batch: Batch) -> list[bytes]:
        """The answers to one dump request, without their headers. One that may lack some is asked again, unless that is always so."""
        found: list[bytes] = []
        for _ in range(_TRIES):
            found, is_torn = self._dumped(batch)
            if not is_torn:
                break
        return found

    def _dumped(self, batch: Batch) -> tuple[list[bytes], bool]:
        self._socket.send(batch.data)
        found: list[bytes] = []
        is_torn = False
        for kind, flags, payload in self._messages():
            is_torn |= bool(flags & _TORN)
            if kind == _DONE:
                break
            if kind == _ERROR:
                if failure := _failure(payload, flags, batch.names[0]):
                    raise failure
                break  # the ack of a request that is answered without a dump
            found.append(payload)
        return found, is_torn

    def _messages(self) -> Iterator[tuple[int, int, bytes]]:
        """Type, flags and payload of each message. The kernel answers while a request is sent, so that none is waited for."""
        while True:
            data = self._socket.recv(_BUFFER, socket.MSG_DONTWAIT)
            place = 0
            while place + _HEADER.size <= len(data):
                length, kind, flags, _, _ = _HEADER.unpack_from(data, place)
                yield kind, flags, data[place + _HEADER.size : place + max(length, _HEADER.size)]
                place += (max(length, _HEADER.size) + 3) & ~3


def _failure(payload: bytes, flags: int, name: str) -> OSError | None:
    """What an ack (struct nlmsgerr, then extended-ack attributes) says went wrong."""
    (number,) = struct.unpack_from("=i", payload)
    if number == 0:
        return None
    place = 4 + _HEADER.size if flags & _CAPPED else 4 + ((struct.unpack_from("=I", payload, 4)[0] + 3) & ~3)
    text = os.strerror(-number)
    while place + 4 <= len(payload):
        length, kind = struct.unpack_from("=HH", payload, place)
        if kind == _REASON:
            text += f" ({payload[place + 4 : place + length].rstrip(bytes(1)).decode(errors='replace')})"
        place += max(4, (length + 3) & ~3)
    return OSError(-number, text, name)
