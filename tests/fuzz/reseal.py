"""Gives a damaged redb file checksums that fit, so that what lies behind them is fuzzed too."""

from __future__ import annotations

import struct

import xxhash

_PAGE = 4096
_MAX_DEPTH = 6


def reseal(raw: bytes) -> bytes:
    """Walks from both commit slots as far as the file makes sense; what it cannot make sense of stays as it is."""
    file = bytearray(raw)
    if len(file) < 2 * _PAGE:
        return raw
    for slot in (64, 192):
        step, sizes = (24, (8, 32, 56)) if file[slot] == 1 else (32, (8, 40, 72))
        for i, at in enumerate(sizes):
            if file[slot + 1 + i] and step:
                _seal(file, slot + at, tables=i < 2, depth=0)
        file[slot + 112 : slot + 128] = _checksum(bytes(file[slot : slot + 112]))
    return bytes(file)


def _checksum(data: bytes) -> bytes:
    return xxhash.xxh3_128_intdigest(data).to_bytes(16, "little")


def _u32(file: bytearray, at: int) -> int:
    found: int = struct.unpack_from("<I", file, at)[0]
    return found


def _start(file: bytearray, page: int) -> int:
    header, data = _u32(file, 16), _u32(file, 20)
    order = page >> 59
    return _PAGE * (1 + (page >> 20 & 0xFFFFF) * (header + data) + header) + (page & (0xFFFFF >> order)) * (_PAGE << order)


def _seal(file: bytearray, root: int, *, tables: bool, depth: int) -> None:
    """Fits the checksum behind the page number at ``root`` to the page of variable keys and values, once its children's fit."""
    start = _start(file, int.from_bytes(file[root : root + 8], "little"))
    if start + _PAGE > len(file) or depth > _MAX_DEPTH:
        return
    count = int.from_bytes(file[start + 2 : start + 4], "little")
    if not 0 < count < 100:
        return
    if file[start] == 2:
        for i in range(count + 1):
            _seal_child(file, start, i, count, tables=tables, depth=depth)
        end = _u32(file, start + 8 + 24 * (count + 1) + 4 * (count - 1))
    else:
        end = _u32(file, start + 4 + 4 * count + 4 * (count - 1))
        if tables:
            _seal_tables(file, start, count, depth)
    if end <= _PAGE:
        file[root + 8 : root + 24] = _checksum(bytes(file[start : start + end]))


def _seal_child(file: bytearray, start: int, i: int, count: int, *, tables: bool, depth: int) -> None:
    """A branch keeps checksums and page numbers apart; a root has them side by side."""
    number, checksum = start + 8 + 16 * (count + 1) + 8 * i, start + 8 + 16 * i
    file += file[number : number + 8] + file[checksum : checksum + 16]
    _seal(file, len(file) - 24, tables=tables, depth=depth + 1)
    file[checksum : checksum + 16] = file[-16:]
    del file[-24:]


def _seal_tables(file: bytearray, start: int, count: int, depth: int) -> None:
    begin = _u32(file, start + 4 + 4 * (count - 1))
    for i in range(count):
        definition = start + begin
        begin = _u32(file, start + 4 + 4 * count + 4 * i)
        if begin <= _PAGE and definition + 42 <= len(file) and file[definition + 9]:
            _seal(file, definition + 10, tables=False, depth=depth + 1)
