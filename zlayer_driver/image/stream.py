"""The stages between a blob's bytes and its archive: check, inflate, hash, each an iterator over pieces, with bounded memory.

`isal` and `zstandard` are imported at first use: a plugin's launch must not pay for them.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import queue
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

from zlayer_driver.image.values import MIB, Descriptor, Limits, Malformed
from zlayer_driver.waiting import until_done

PIECE = 2 * MIB  # largest piece that inflating gives: large enough that its threads seldom meet
_SLICE = 512 * 1024  # bytes given to an inflater at once
_AHEAD = 4  # pieces between two threads
_WINDOW = 32 * MIB  # of zstd; 8 MiB is what its format asks decoders to take
_GZIP = 31  # zlib's wbits for a gzip member


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def verified(pieces: Iterable[bytes], blob: Descriptor) -> Iterator[bytes]:
    """The same pieces; `Malformed` as soon as they are too many, and at the end if size or digest differ."""
    seen, left = hashlib.sha256(), blob.size
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            break
        seen.update(piece)
        yield piece
    if left:
        raise Malformed(f"blob {blob.digest} has {'more' if left < 0 else 'less'} than its {blob.size} bytes")
    if f"sha256:{seen.hexdigest()}" != blob.digest:
        raise Malformed(f"blob {blob.digest} arrived with content of another digest")


def hashed(pieces: Iterable[bytes], diff_id: str) -> Iterator[bytes]:
    """The same pieces; `Malformed` at the end if the archive's digest is not ``diff_id``."""
    seen = hashlib.sha256()
    for piece in pieces:
        seen.update(piece)
        yield piece
    if f"sha256:{seen.hexdigest()}" != diff_id:
        raise Malformed(f"a layer does not unpack to diff_id {diff_id}")


def inflated(pieces: Iterable[bytes], compression: str, limits: Limits) -> Iterator[bytes]:
    """The archive in a blob. ``compression`` is ``gzip``, ``zstd`` or empty. ``pieces`` is read to its end."""
    counted = _Counted(pieces)
    stages: dict[str, Callable[[_Counted], Iterator[bytes]]] = {"": iter, "gzip": _gunzipped, "zstd": _unzstd}
    out = 0
    for piece in stages[compression](counted):
        out += len(piece)
        if out > limits.layer_bytes:
            raise Malformed(f"a layer unpacks to more than {limits.layer_bytes} bytes, which image_max_layer_mb allows")
        if out > max(limits.ratio_free_bytes, limits.ratio * counted.taken):
            raise Malformed(f"a layer unpacks to more than {limits.ratio} times its size")
        yield piece


class _Counted:
    """An iterator that knows how many bytes it has given."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self.taken = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = next(self._pieces)
        self.taken += len(piece)
        return piece


def _gunzipped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Members one after the other, as parallel compressors and seekable layers write them; zero bytes may follow the last."""
    from isal import isal_zlib  # noqa: PLC0415 # at first use, see above

    inflater = isal_zlib.decompressobj(wbits=_GZIP)
    fresh = True
    for piece in _slices(pieces):
        rest = piece
        while rest:
            if inflater.eof:
                inflater, fresh = isal_zlib.decompressobj(wbits=_GZIP), True
            if fresh and not rest.strip(b"\0"):
                break
            try:
                out = inflater.decompress(rest, PIECE)
            except isal_zlib.error as error:  # type: ignore[misc] # its stub takes the class for an instance
                raise Malformed(f"a layer is no gzip stream: {error}") from error
            fresh = False
            rest = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            if out:
                yield out
    if not inflater.eof and not fresh:
        yield from _rest_of(inflater)


def _slices(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Small enough that inflating one seldom leaves a tail, which would be copied."""
    for piece in pieces:
        for at in range(0, len(piece), _SLICE):
            yield piece[at : at + _SLICE]


def _rest_of(inflater: Any) -> Iterator[bytes]:
    """What an inflater still holds when its input has ended."""
    while not inflater.eof:
        out = inflater.decompress(b"", PIECE)
        if not out and not inflater.eof:
            raise Malformed("a layer's gzip stream is cut short")
        if out:
            yield out


def _unzstd(pieces: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard  # noqa: PLC0415 # at first use, see above

    source = io.BufferedReader(_Readable(pieces), PIECE)
    reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(source, read_across_frames=True)
    try:
        while out := reader.read(PIECE):
            yield out
    except zstandard.ZstdError as error:
        raise Malformed(f"a layer is no zstd stream: {error}") from error


class _Readable(io.RawIOBase):
    """Pieces as a readable file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or next(self._pieces, b"")
        part, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def ahead(pieces: Iterable[bytes]) -> Generator[bytes, None, None]:
    """The same pieces, made in a thread of their own, so that two stages work at once. Closing the iterator ends the thread."""
    ready: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def work() -> None:
        last: BaseException | None = None
        try:
            for piece in pieces:
                if stop.is_set():
                    break
                ready.put(piece)
        except BaseException as error:  # noqa: BLE001 # raised again in the reading thread
            last = error
        ready.put(last)

    threading.Thread(target=work, name="inflate", daemon=True).start()
    piece: bytes | BaseException | None = b""
    try:
        while isinstance(piece := ready.get(), bytes):
            yield piece
        if piece is not None:
            raise piece
    finally:
        stop.set()
        while isinstance(piece, bytes):
            piece = ready.get()


class Stopped(Exception):
    """Nobody wants the rest of a `Bridge`'s pieces."""


class Bridge:
    """An async iterator of the event loop, read by worker threads, one piece ahead. After `close` their next read raises `Stopped`."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[bytes | None] | None = None
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        coming = self._ask()
        while (piece := coming.result()) is not None:
            coming = self._ask()
            yield piece

    async def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await until_done(self._task)

    def _ask(self) -> Future[bytes | None]:
        coming: Future[bytes | None] = Future()
        self._loop.call_soon_threadsafe(self._start, coming)
        return coming

    def _start(self, coming: Future[bytes | None]) -> None:
        if self._closed:
            coming.set_exception(Stopped())
        else:
            self._task = self._loop.create_task(self._next())
            # Not in the task's own code: a task that is cancelled before its first step never runs any.
            self._task.add_done_callback(partial(_deliver, coming))

    async def _next(self) -> bytes | None:
        return await anext(self._pieces, None)


def _deliver(coming: Future[bytes | None], task: asyncio.Task[bytes | None]) -> None:
    if task.cancelled():
        coming.set_exception(Stopped())
    elif (error := task.exception()) is not None:
        coming.set_exception(error)
    else:
        coming.set_result(task.result())
