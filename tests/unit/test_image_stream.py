"""The stages of a layer's bytes: inflating what compressors write, refusing what bombs do, and ending when told to."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from zlayer_driver.image.stream import Bridge, Stopped, ahead, inflated
from zlayer_driver.image.values import Limits, Malformed

TEXT = b"".join(b"%d lines\n" % number for number in range(60_000))


def whole(packed: bytes, how: str, cut: int = 1000, limits: Limits | None = None) -> bytes:
    pieces = [packed[at : at + cut] for at in range(0, len(packed), cut)]
    return b"".join(inflated(pieces, how, limits or Limits()))


@given(st.lists(st.binary(max_size=300), max_size=4), st.integers(1, 400))
def test_gzip_members_follow_each_other(parts: list[bytes], cut: int) -> None:
    assert whole(b"".join(gzip.compress(part) for part in parts), "gzip", cut) == b"".join(parts)


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=4), st.integers(1, 400))
def test_zstd_frames_follow_each_other(parts: list[bytes], cut: int) -> None:
    assert whole(b"".join(zstandard.compress(part) for part in parts), "zstd", cut) == b"".join(parts)


@pytest.mark.parametrize("cut", [1, 7, 4096, 1 << 20])
def test_text_of_many_pieces(cut: int) -> None:
    assert whole(gzip.compress(TEXT), "gzip", cut) == TEXT
    assert whole(zstandard.compress(TEXT), "zstd", cut) == TEXT
    assert whole(TEXT, "", cut) == TEXT


def test_zeros_may_follow_gzip_and_nothing_else() -> None:
    packed = gzip.compress(TEXT)
    assert whole(packed + bytes(3000), "gzip") == TEXT
    with pytest.raises(Malformed, match="no gzip stream"):
        whole(packed + b"more than this", "gzip")
    with pytest.raises(Malformed, match="no zstd stream"):
        whole(zstandard.compress(TEXT) + b"more than this", "zstd")


def test_what_is_cut_short_or_of_another_kind_is_refused() -> None:
    with pytest.raises(Malformed, match="cut short"):
        whole(gzip.compress(TEXT)[:-20], "gzip")
    with pytest.raises(Malformed, match="no gzip stream"):
        whole(TEXT, "gzip")
    with pytest.raises(Malformed, match="no zstd stream"):
        whole(TEXT, "zstd")


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_bombs_are_cut_by_size_and_by_ratio(how: str) -> None:
    zeros = bytes(30 << 20)
    packed = gzip.compress(zeros) if how == "gzip" else zstandard.compress(zeros)
    with pytest.raises(Malformed, match="more than 1000000 bytes"):
        whole(packed, how, limits=Limits(layer_bytes=1_000_000))
    with pytest.raises(Malformed, match="more than 500 times"):
        whole(packed, how, limits=Limits(ratio_free_bytes=1_000_000))


def test_a_zstd_window_beyond_reason_is_refused() -> None:
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    packed = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    with pytest.raises(Malformed, match="no zstd stream"):
        whole(packed.compress(TEXT) + packed.flush(), "zstd")


def test_a_stage_ahead_gives_all_and_its_error() -> None:
    def failing() -> Iterator[bytes]:
        yield b"1"
        raise Malformed("in the thread")

    assert list(ahead([b"a", b"b"])) == [b"a", b"b"]
    with pytest.raises(Malformed, match="in the thread"):
        list(ahead(failing()))


def test_a_stage_ahead_that_is_closed_ends_its_thread() -> None:
    before = threading.active_count()
    pieces = ahead(b"x" for _ in range(1000))
    assert next(pieces) == b"x"
    pieces.close()
    assert threading.active_count() <= before + 1  # its last step is to say that it ends


async def forever() -> AsyncIterator[bytes]:
    yield b"first"
    await asyncio.Event().wait()
    yield b"never"


async def test_a_closed_bridge_stops_its_reader_at_any_step() -> None:
    for steps in range(12):
        bridge = Bridge(forever())
        reader = asyncio.get_running_loop().run_in_executor(None, list, bridge)
        for _ in range(steps):
            await asyncio.sleep(0)
        await bridge.close()
        with pytest.raises(Stopped):
            await reader


async def test_a_task_cancelled_before_its_first_step_still_answers() -> None:
    bridge = Bridge(forever())
    coming: Future[bytes | None] = Future()
    bridge._start(coming)
    await bridge.close()
    with pytest.raises(Stopped):
        await asyncio.wrap_future(coming)


async def test_errors_cross_the_bridge() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"first"
        raise Malformed("on the loop")

    with pytest.raises(Malformed, match="on the loop"):
        await asyncio.to_thread(list, Bridge(failing()))
