"""Blind mutation: bytes flipped, cut, doubled, moved, and set to values that lie at edges."""

from __future__ import annotations

import random
from collections.abc import Iterator

_EDGES = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\0\0\0\x80",
    b"\xff" * 8,
    b'"',
    b"\\",
    b"\\ud800",
    b"{",
    b"[",
    b"null",
    b"1e999",
    b"@",
    b":",
    b"/",
]


def mutations(seeds: list[bytes], seed: int) -> Iterator[bytes]:
    """The seeds, then mutants of them without end; the same ones for the same ``seed``."""
    yield from seeds
    chance = random.Random(seed)
    while True:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            _mutate(data, seeds, chance)
        yield bytes(data)


def _mutate(data: bytearray, seeds: list[bytes], chance: random.Random) -> None:
    at = chance.randrange(len(data) + 1)
    size = chance.choice((1, 1, 2, 4, 8, 64, 512))
    match chance.randrange(7):
        case 0 if data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        case 1:
            edge = chance.choice(_EDGES)
            data[at : at + len(edge)] = edge
        case 2:
            data[at:at] = chance.choice(_EDGES)
        case 3:
            del data[at : at + size]
        case 4:
            data[at : at + size] = chance.randbytes(size)
        case 5:
            other = chance.choice(seeds)
            start = chance.randrange(len(other) + 1)
            data[at : at + size] = other[start : start + size]
        case _:
            target = chance.randrange(len(data) + 1)
            data[target : target + size] = data[at : at + size]
