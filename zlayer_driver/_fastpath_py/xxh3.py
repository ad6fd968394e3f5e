"""XXH3 128-bit with seed 0, from the algorithm's published description: the checksum of redb's pages and commit slots."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

_M32, _M64 = 2**32 - 1, 2**64 - 1
_P32_1, _P32_2, _P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
_P64_1, _P64_2, _P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_P64_4, _P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
_MIX_1, _MIX_2 = 0x165667919E3779F9, 0x9FB21C651E98DF25
_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
_STRIPE, _BLOCK = 64, 1024
_u32 = Struct("<I").unpack_from
_u64 = Struct("<Q").unpack_from
_lanes = Struct("<8Q").unpack_from


def _secret64(offset: int) -> int:
    word: int = _u64(_SECRET, offset)[0]
    return word


def _fold(a: int, b: int) -> int:
    product = a * b
    return (product & _M64) ^ (product >> 64)


def _avalanche(h: int) -> int:
    h = (h ^ h >> 37) * _MIX_1 & _M64
    return h ^ h >> 32


def _avalanche_64(h: int) -> int:
    h = (h ^ h >> 33) * _P64_2 & _M64
    h = (h ^ h >> 29) * _P64_3 & _M64
    return h ^ h >> 32


def _swap(value: int, size: int) -> int:
    return int.from_bytes(value.to_bytes(size, "little"), "big")


def _up_to_3(data: bytes) -> tuple[int, int]:
    size = len(data)
    if size == 0:
        return _avalanche_64(_secret64(64) ^ _secret64(72)), _avalanche_64(_secret64(80) ^ _secret64(88))
    low = data[0] << 16 | data[size >> 1] << 24 | data[-1] | size << 8
    high = _swap(low, 4)
    high = (high << 13 | high >> 19) & _M32
    flip_low = _u32(_SECRET, 0)[0] ^ _u32(_SECRET, 4)[0]
    flip_high = _u32(_SECRET, 8)[0] ^ _u32(_SECRET, 12)[0]
    return _avalanche_64(low ^ flip_low), _avalanche_64(high ^ flip_high)


def _up_to_8(data: bytes) -> tuple[int, int]:
    size = len(data)
    word = _u32(data, 0)[0] | _u32(data, size - 4)[0] << 32
    product = (word ^ _secret64(16) ^ _secret64(24)) * ((_P64_1 + (size << 2)) & _M64)
    low, high = product & _M64, product >> 64
    high = (high + (low << 1)) & _M64
    low ^= high >> 3
    low = (low ^ low >> 35) * _MIX_2 & _M64
    return low ^ low >> 28, _avalanche(high)


def _up_to_16(data: bytes) -> tuple[int, int]:
    size = len(data)
    first, last = _u64(data, 0)[0], _u64(data, size - 8)[0]
    product = (first ^ last ^ _secret64(32) ^ _secret64(40)) * _P64_1
    low, high = (product + ((size - 1) << 54)) & _M64, product >> 64
    last ^= _secret64(48) ^ _secret64(56)
    high = (high + last + (last & _M32) * (_P32_2 - 1)) & _M64
    product = (low ^ _swap(high, 8)) * _P64_2
    return _avalanche(product & _M64), _avalanche(((product >> 64) + high * _P64_2) & _M64)


class _Middle:
    """The state for inputs of 17 to 240 bytes, which are mixed by pairs of 16."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.low = len(data) * _P64_1 & _M64
        self.high = 0

    def _mix16(self, at: int, secret: int) -> int:
        return _fold(_u64(self.data, at)[0] ^ _secret64(secret), _u64(self.data, at + 8)[0] ^ _secret64(secret + 8))

    def _sum16(self, at: int) -> int:
        total: int = _u64(self.data, at)[0] + _u64(self.data, at + 8)[0]
        return total & _M64

    def mix(self, one: int, two: int, secret: int) -> None:
        self.low = (self.low + self._mix16(one, secret) & _M64) ^ self._sum16(two)
        self.high = (self.high + self._mix16(two, secret + 16) & _M64) ^ self._sum16(one)

    def digest(self) -> tuple[int, int]:
        high = (self.low * _P64_1 + self.high * _P64_4 + len(self.data) * _P64_2) & _M64
        return _avalanche((self.low + self.high) & _M64), -_avalanche(high) & _M64


def _up_to_128(data: bytes) -> tuple[int, int]:
    state = _Middle(data)
    for pair in range((len(data) - 1) // 32, -1, -1):
        state.mix(16 * pair, len(data) - 16 * (pair + 1), 32 * pair)
    return state.digest()


def _up_to_240(data: bytes) -> tuple[int, int]:
    state, size = _Middle(data), len(data)
    for at in range(0, 128, 32):
        state.mix(at, at + 16, at)
    state.low, state.high = _avalanche(state.low), _avalanche(state.high)
    for at in range(128, size - 31, 32):
        state.mix(at, at + 16, 3 + at - 128)
    # The last pair is mixed backwards, and without a seed its secret is the same as forwards.
    state.mix(size - 16, size - 32, 136 - 17 - 16)
    return state.digest()


def _accumulate(state: list[int], data: bytes, at: int, secret: int) -> None:
    lanes, keys = _lanes(data, at), _lanes(_SECRET, secret)
    for i, lane in enumerate(lanes):
        key = lane ^ keys[i]
        state[i ^ 1] = (state[i ^ 1] + lane) & _M64
        state[i] = (state[i] + (key & _M32) * (key >> 32)) & _M64


def _scramble(state: list[int]) -> None:
    keys = _lanes(_SECRET, 192 - _STRIPE)
    state[:] = [((lane ^ lane >> 47) ^ key) * _P32_1 & _M64 for lane, key in zip(state, keys, strict=True)]


def _merge(state: list[int], secret: int, start: int) -> int:
    for i in range(4):
        start += _fold(state[2 * i] ^ _secret64(secret + 16 * i), state[2 * i + 1] ^ _secret64(secret + 16 * i + 8))
    return _avalanche(start & _M64)


def _long(data: bytes) -> tuple[int, int]:
    state = [_P32_3, _P64_1, _P64_2, _P64_3, _P64_4, _P32_2, _P64_5, _P32_1]
    size = len(data)
    for at in range(0, (size - 1) // _STRIPE * _STRIPE, _STRIPE):
        _accumulate(state, data, at, at % _BLOCK // 8)
        if at % _BLOCK == _BLOCK - _STRIPE:
            _scramble(state)
    _accumulate(state, data, size - _STRIPE, 192 - _STRIPE - 7)
    return _merge(state, 11, size * _P64_1 & _M64), _merge(state, 192 - _STRIPE - 11, ~(size * _P64_2) & _M64)


_BY_SIZE: tuple[tuple[int, Callable[[bytes], tuple[int, int]]], ...] = (
    (3, _up_to_3),
    (8, _up_to_8),
    (16, _up_to_16),
    (128, _up_to_128),
    (240, _up_to_240),
)


def xxh3_128(data: bytes) -> bytes:
    """The checksum as redb stores it: 16 bytes, little endian."""
    work = next((work for limit, work in _BY_SIZE if len(data) <= limit), _long)
    low, high = work(data)
    return (high << 64 | low).to_bytes(16, "little")
