"""A streaming reader of layer archives: POSIX ustar and pax, GNU long names, base-256 numbers and sparse files.

Formats: POSIX.1-2017 ``pax``, and «Basic Tar Format» and «Sparse Formats» of the GNU tar manual. Names are bytes, as the kernel has them.
Memory is bounded by `MAX_META` whatever the archive says.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from zlayer_driver.image.values import MIB, Malformed

BLOCK = 512
MAX_META = 1 * MIB  # bytes of pax headers and long names before one entry, and of the map in a sparse file's data
MAX_SPARSE = 65_536  # data segments of one sparse file
_END_OF_TIME_S = 1 << 34  # as far as ext4 keeps times, the year 2446; beyond it counts as not said
_ZERO = bytes(BLOCK)
_ADLER_BASE = 65_521
_XATTR = b"SCHILY.xattr."
_VALUES = frozenset(
    b"path linkpath size uid gid mtime GNU.sparse.major GNU.sparse.name GNU.sparse.realsize GNU.sparse.size GNU.sparse.map".split()
)


class Kind(bytes, Enum):
    """Type flags of POSIX. They are bytes also so that looking one up costs no call of Python's."""

    FILE = b"0"
    HARD_LINK = b"1"
    SYMLINK = b"2"
    CHAR_DEVICE = b"3"
    BLOCK_DEVICE = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


_DEVICES = frozenset({Kind.CHAR_DEVICE, Kind.BLOCK_DEVICE})
_KINDS = {kind.value: kind for kind in Kind} | {b"\0": Kind.FILE, b"7": Kind.FILE, b"S": Kind.FILE}


@dataclass(slots=True)
class Entry:
    """One member.

    ``size`` is the bytes of data in the archive; ``segments`` are a sparse file's (offset, length) pieces of them, and ``real_size`` is
    the file's length then. ``mode`` has permission bits and setuid, setgid, sticky only.
    """

    name: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes
    device: tuple[int, int]
    xattrs: Mapping[bytes, bytes]
    segments: tuple[tuple[int, int], ...] | None = None
    real_size: int = 0


class Source:
    """Bytes in pieces of any size, read by exact counts."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._piece = memoryview(b"")
        self.position = 0

    def take(self, count: int) -> Iterator[memoryview]:
        """The next ``count`` bytes, in views that hold until the next call."""
        self.position += count
        while count:
            if not self._piece and not self._refill():
                raise Malformed("archive ends in the middle of an entry")
            view, self._piece = self._piece[:count], self._piece[count:]
            count -= len(view)
            yield view

    def read(self, count: int) -> bytes:
        if len(self._piece) >= count:
            view, self._piece = self._piece[:count], self._piece[count:]
            self.position += count
            return bytes(view)
        return b"".join(self.take(count))

    def skip(self, count: int) -> None:
        for _ in self.take(count):
            pass

    def drain(self) -> None:
        """Reads to the end of the stream, so that whoever hashes it has seen all."""
        self._piece = memoryview(b"")
        for _ in self._pieces:
            pass

    def _refill(self) -> bool:
        """Takes the next piece; false at the end of the stream."""
        for piece in self._pieces:
            if piece:
                self._piece = memoryview(piece)
                return True
        return False

    @property
    def ended(self) -> bool:
        return not self._piece and not self._refill()

    @property
    def at_hand(self) -> memoryview:
        """The rest of the current piece, not taken."""
        return self._piece


@dataclass(slots=True)
class _Extended:
    """What pax and GNU headers say of the next entry."""

    values: dict[bytes, bytes] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    map: list[int] = field(default_factory=list)  # GNU.sparse 0.0: offset, length, offset, length …
    size: int = 0  # of these headers, in bytes


class Reader:
    """Iterates over entries; between two steps the caller may take the data of the current one by `data`, whole or in part."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._left = 0
        self._padding = 0
        self._global: dict[bytes, bytes] = {}

    def data(self) -> Iterator[memoryview]:
        """The entry's bytes as they stand in the archive; sparse files without their holes."""
        left, self._left = self._left, 0
        return self._source.take(left)

    def hand_over(self, take: Callable[[memoryview], tuple[int, int]]) -> int:
        """Lets ``take`` deal with members after the current entry: it is given bytes, and tells how many members it took, and their bytes."""
        self._end_entry()
        if self._global or self._source.ended:  # what stands in a global header would have to be told of each member
            return 0
        count, size = take(self._source.at_hand)
        self._source.skip(size)
        return count

    def __iter__(self) -> Iterator[Entry]:
        extended = _Extended(dict(self._global))
        while (header := self._header()) is not None:
            kind = header[156:157]
            if kind in b"xgLK":
                self._extend(kind, header, extended)
                continue
            entry = self._entry(header, extended)
            if entry is not None:
                yield entry
            extended = _Extended(dict(self._global))
            self._end_entry()
        self._source.drain()

    def _end_entry(self) -> None:
        self._source.skip(self._left + self._padding)
        self._left = self._padding = 0

    def _header(self) -> bytes | None:
        """The next header block; ``None`` after the end mark. Some writers leave the end mark out, so the stream's end is one too."""
        if self._source.ended:
            return None
        block = self._source.read(BLOCK)
        if block == _ZERO:
            return None
        if not _checksum_fits(block):
            at = self._source.position - BLOCK
            raise Malformed(f"archive has a damaged header at byte {at}" if at else "it is no tar archive, or its first header is damaged")
        return block

    def _extend(self, kind: bytes, header: bytes, extended: _Extended) -> None:
        size = _number(header[124:136])
        extended.size += size
        if size < 0 or extended.size > MAX_META:
            raise Malformed(f"extended headers of {extended.size} bytes before one entry, and {MAX_META} are allowed")
        text = self._source.read(size)
        self._source.skip(-size % BLOCK)
        if kind == b"L":
            extended.values[b"path"] = text.split(b"\0", 1)[0]
        elif kind == b"K":
            extended.values[b"linkpath"] = text.split(b"\0", 1)[0]
        elif kind == b"g":
            self._global |= {key: value for key, value in _records(text) if key in _VALUES}
            extended.values = self._global | extended.values
        else:
            _merge(extended, _records(text))

    def _entry(self, header: bytes, extended: _Extended) -> Entry | None:
        """The entry of a header; ``None`` for one of an unknown kind, whose data is skipped, as POSIX asks."""
        values = extended.values
        size = _decimal(values[b"size"]) if b"size" in values else _number(header[124:136])
        if size < 0:
            raise Malformed(f"an entry has size {size}")
        kind = _KINDS.get(header[156:157])
        name = values.get(b"path") or _name(header)
        if kind is Kind.FILE and name.endswith(b"/"):
            kind = Kind.DIRECTORY  # as the oldest archives write one
        self._left = size if kind is Kind.FILE or kind is None else 0
        self._padding = -self._left % BLOCK
        if kind is None:
            return None
        entry = Entry(
            name=values.get(b"GNU.sparse.name") or name,
            kind=kind,
            mode=_number(header[100:108]) & 0o7777,
            uid=_decimal(values[b"uid"]) if b"uid" in values else _number(header[108:116]),
            gid=_decimal(values[b"gid"]) if b"gid" in values else _number(header[116:124]),
            size=self._left,
            mtime_ns=_time_ns(values[b"mtime"]) if b"mtime" in values else _number(header[136:148]) * 1_000_000_000,
            target=values.get(b"linkpath") or header[157:257].split(b"\0", 1)[0],
            device=(_number(header[329:337]), _number(header[337:345])) if kind in _DEVICES else (0, 0),
            xattrs=extended.xattrs,
        )
        self._sparse(entry, header, extended)
        _check(entry)
        return entry

    def _sparse(self, entry: Entry, header: bytes, extended: _Extended) -> None:
        """Fills in the data map of a sparse file, of GNU's old format or pax formats 0.0, 0.1 and 1.0."""
        values = extended.values
        if header[156:157] == b"S":
            numbers, entry.real_size = self._old_map(header), _number(header[483:495])
        elif values.get(b"GNU.sparse.major") == b"1":
            numbers, entry.real_size = self._leading_map(entry), _decimal(values.get(b"GNU.sparse.realsize", b""))
        elif b"GNU.sparse.size" in values:
            listed = values.get(b"GNU.sparse.map")
            numbers = [_decimal(part) for part in listed.split(b",")] if listed else extended.map
            entry.real_size = _decimal(values[b"GNU.sparse.size"])
        else:
            return
        entry.segments = _segments(numbers, entry)

    def _old_map(self, header: bytes) -> list[int]:
        """Four pairs in the header, and 21 in each further block for as long as the last one says so."""
        numbers = [_number(header[at : at + 12]) for at in range(386, 482, 12) if header[at]]
        more = header[482]
        while more:
            block = self._source.read(BLOCK)
            numbers += [_number(block[at : at + 12]) for at in range(0, 504, 12) if block[at]]
            more = block[504]
            if len(numbers) > 2 * MAX_SPARSE:
                raise Malformed(f"a sparse file has more than {MAX_SPARSE} pieces")
        return numbers

    def _leading_map(self, entry: Entry) -> list[int]:
        """Decimal lines at the start of the data, padded to a block: the count of pairs, then the pairs."""
        text, lines, needed = bytearray(), 0, 1
        while lines < needed:
            if self._left < BLOCK or len(text) > MAX_META:
                raise Malformed("a sparse file has no proper map")
            block = self._source.read(BLOCK)
            self._left -= BLOCK
            text += block
            lines += block.count(b"\n")
            if lines and needed == 1:
                needed = 1 + 2 * min(_decimal(text.split(b"\n", 1)[0]), MAX_SPARSE)
        entry.size = self._left
        return [_decimal(line) for line in text.split(b"\n")[1:needed]]


def _merge(extended: _Extended, records: Iterable[tuple[bytes, bytes]]) -> None:
    for key, value in records:
        if key.startswith(_XATTR):
            extended.xattrs[key.removeprefix(_XATTR)] = value
        elif key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}:
            extended.map.append(_decimal(value))
        elif key in _VALUES:
            extended.values[key] = value


def _records(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Records, each ``LENGTH KEY=VALUE`` and a newline; the length counts the whole record."""
    at = 0
    while at < len(text):
        space = text.find(b" ", at, at + 20)
        end = at + _decimal(text[at:space]) if space > 0 else 0
        record = text[space + 1 : end - 1]
        if not at < space < end <= len(text) or text[end - 1 : end] != b"\n" or b"=" not in record:
            raise Malformed("archive has a damaged pax header")
        key, _, value = record.partition(b"=")
        yield key, value
        at = end


def _segments(numbers: list[int], entry: Entry) -> tuple[tuple[int, int], ...]:
    pairs = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    end = 0
    for offset, length in pairs:
        if offset < end or length < 0 or offset + length > entry.real_size:
            raise Malformed("a sparse file has overlapping or outlying pieces")
        end = offset + length
    if len(numbers) % 2 or sum(length for _, length in pairs) != entry.size:
        raise Malformed("a sparse file's map does not fit its data")
    return pairs


def _check(entry: Entry) -> None:
    if b"\0" in entry.name or b"\0" in entry.target:
        raise Malformed("an entry's name has a NUL byte")
    if not (0 <= entry.uid < 0xFFFF_FFFF and 0 <= entry.gid < 0xFFFF_FFFF):
        raise Malformed(f"an entry has owner {entry.uid}:{entry.gid}")
    if abs(entry.mtime_ns) >= _END_OF_TIME_S * 1_000_000_000:
        entry.mtime_ns = 0


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] != b"ustar\0":  # GNU's own magic has other things where the prefix is
        return name
    prefix = header[345:500].split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix else name


def _checksum_fits(block: bytes) -> bool:
    """Sums of unsigned bytes are the rule; old writers summed signed ones. The sum's own field counts as blanks.

    Half of an Adler-32 is such a sum, plus one and modulo its base, and ten times as fast as `sum`.
    """
    try:
        said = _number(block[148:156])
    except Malformed:
        return False
    rest = block[:148] + block[156:]
    plain = (zlib.adler32(rest) & 0xFFFF) - 1 + 8 * 0x20
    return (said - plain) % _ADLER_BASE == 0 or said == sum(rest) + 8 * 0x20 - 256 * sum(byte > 0x7F for byte in rest)


def _number(field_: bytes) -> int:
    """An octal number, or GNU's base 256 in two's complement where the top bit is set."""
    if field_[0] == 0xFF:
        return int.from_bytes(field_, "big", signed=True)
    if field_[0] & 0x80:
        return int.from_bytes(field_, "big") - (0x80 << 8 * (len(field_) - 1))
    text = field_[:-1] if field_[-1] == 0 else field_  # so nearly all writers end it
    if not text.isdigit():
        text = field_.strip(b" \0").partition(b"\0")[0] or b"0"
    try:
        return int(text if text.isdigit() else b"?", 8)  # not all that `int` takes is one
    except ValueError:
        raise Malformed(f"{text!r} is no octal number") from None


def _decimal(text: bytes | bytearray) -> int:
    if not text.isdigit() or len(text) > 20:
        raise Malformed(f"{text[:40]!r} is no decimal number")
    return int(text)


def _time_ns(text: bytes) -> int:
    """Seconds with an optional fraction, as pax writes times."""
    whole, _, fraction = text.removeprefix(b"-").partition(b".")
    nanoseconds = _decimal(whole) * 1_000_000_000 + _decimal((fraction or b"0")[:9].ljust(9, b"0"))
    return -nanoseconds if text.startswith(b"-") else nanoseconds
