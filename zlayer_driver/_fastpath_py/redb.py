"""Reads redb files of formats 1 to 3 (redb 1.x to 4.x) without writing or locking: docs/design.md of redb, and its published sources.

A file is a super-header with two commit slots, then regions of pages. A slot names the roots of B+trees; each parent holds its children's
checksums, so that what hangs from a good slot can be told from what an unfinished commit left. Nothing in a file is believed unchecked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from zlayer_driver._fastpath_py.xxh3 import xxh3_128
from zlayer_driver.errors import CacheBusy, CacheError

MAGIC = b"redb\x1a\x0a\xa9\x0d\x0a"
TABLE = b"blob_data"
MAX_PAGE_BYTES = 16 << 20
MAX_BRANCH_BYTES = 256 << 10
MAX_DEPTH = 32
ATTEMPTS = 8
_LEAF, _BRANCH = 1, 2
_STR, _BYTES = b"\x01&str", b"\x01&[u8]"
_layout = Struct("<12x5I").unpack_from
_root = Struct("<Q16s").unpack_from
_u64 = Struct("<Q").unpack_from


class NotRedb(Exception):
    """The file does not begin as a redb file does."""


class Damaged(Exception):
    """Something in the file contradicts its checksums or its own layout."""


class CutOff(Damaged):
    """A page lies outside the file: what is lost cannot be made up for by an older commit."""


class TooLarge(Damaged):
    """A page that can hold no manifest or config; a check of the whole file passes it over."""


class Root(NamedTuple):
    page: int
    checksum: bytes


class Shape(NamedTuple):
    """Fixed widths of a tree's keys and values, ``None`` where they vary."""

    key_bytes: int | None = None
    value_bytes: int | None = None


class Table(NamedTuple):
    root: Root | None
    shape: Shape
    multimap: bool
    types: tuple[bytes, bytes]


class Slot(NamedTuple):
    version: int
    user: Root | None
    system: Root | None
    freed: Root | None
    transaction: int
    sound: bool


_FREED = Shape(key_bytes=16)  # transaction and pagination number


def _slot(raw: bytes) -> Slot:
    version = raw[0]
    if version not in {1, 2, 3}:
        raise Damaged("its format version is not known")
    step, transaction = (24, 80) if version == 1 else (32, 104)
    roots = [Root(*_root(raw, 8 + i * step)) if raw[1 + i] else None for i in range(3)]
    sound = xxh3_128(raw[:112]) == raw[112:128]
    return Slot(version, roots[0], roots[1], None if version == 3 else roots[2], _u64(raw, transaction)[0], sound)


class _Pages:
    """The pages of one open file."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size
        head = os.pread(fd, 320, 0)
        if not head.startswith(MAGIC):
            raise NotRedb
        if len(head) < 320:
            raise Damaged("it is shorter than its header")
        self.flags = head[9]
        self.slots = _slot(head[64:192]), _slot(head[192:320])
        self.page_size, self.header_pages, self.data_pages, full, rest = _layout(head)
        if self.page_size not in {1 << i for i in range(9, 17)} or not self.data_pages or self.size % self.page_size:
            raise Damaged("its page layout makes no sense")
        if self.slots[0].version != self.slots[1].version:
            raise Damaged("its commit slots are of different formats")
        region_pages = self.header_pages + self.data_pages
        pages = 1 + full * region_pages + (self.header_pages + rest if rest else 0)
        self.settled = not self.flags & 2 and self.size == pages * self.page_size
        self.rewind()

    def rewind(self) -> None:
        """Before each walk: a page hangs from one parent, so that more visits than pages mean a loop."""
        self.left = self.size // self.page_size

    def read(self, root: Root) -> bytes:
        order = root.page >> 59
        index, region = root.page & (0xFFFFF >> order), root.page >> 20 & 0xFFFFF
        size = self.page_size << order
        start = self.page_size * (1 + region * (self.header_pages + self.data_pages) + self.header_pages) + index * size
        self.left -= 1
        if start + size > self.size:
            raise CutOff("a page lies outside the file")
        if self.left < 0:
            raise Damaged("its trees have a loop")
        if size > MAX_PAGE_BYTES:
            raise TooLarge("a page is larger than 16 MiB")
        raw = os.pread(self.fd, size, start)
        if len(raw) != size:
            raise CutOff("a page lies outside the file")
        if raw[0] == _BRANCH and size > MAX_BRANCH_BYTES:
            raise Damaged("a branch page is larger than 256 KiB")
        return raw


class _Node:
    """One page of a tree, its offsets and checksum checked."""

    def __init__(self, raw: bytes, checksum: bytes, shape: Shape) -> None:
        self.raw = raw
        self.is_leaf = raw[0] == _LEAF
        count = int.from_bytes(raw[2:4], "little")
        if raw[0] not in {_LEAF, _BRANCH} or count == 0:
            raise Damaged("a page is neither leaf nor branch")
        head = 4 if self.is_leaf else 8 + 24 * (count + 1)
        varies = [shape.key_bytes is None, self.is_leaf and shape.value_bytes is None]
        start = head + 4 * count * sum(varies)
        self.key_ends = self._ends(start, count, shape.key_bytes, head)
        self.value_ends = self._ends(self.key_ends[-1], count, shape.value_bytes, head + 4 * count * varies[0]) if self.is_leaf else []
        if xxh3_128(raw[: self.value_ends[-1] if self.is_leaf else self.key_ends[-1]]) != checksum:
            raise Damaged("a page does not have its checksum")
        self.count = count

    def _ends(self, start: int, count: int, width: int | None, table: int) -> list[int]:
        """Where the section starts, then where each of its items ends."""
        if start > len(self.raw) or (width is not None and start + width * count > len(self.raw)):
            raise Damaged("a page's offsets make no sense")
        if width is not None:
            return [start + width * i for i in range(count + 1)]
        ends = [start, *Struct(f"<{count}I").unpack_from(self.raw, table)]
        if any(a > b for a, b in pairwise(ends)) or ends[-1] > len(self.raw):
            raise Damaged("a page's offsets make no sense")
        return ends

    def key(self, i: int) -> bytes:
        return self.raw[self.key_ends[i] : self.key_ends[i + 1]]

    def value(self, i: int) -> bytes:
        return self.raw[self.value_ends[i] : self.value_ends[i + 1]]

    def child(self, i: int) -> Root:
        checksum = self.raw[8 + 16 * i : 24 + 16 * i]
        return Root(_u64(self.raw, 8 + 16 * (self.count + 1) + 8 * i)[0], checksum)

    def position(self, key: bytes) -> int:
        """The first item whose key is not below ``key``."""
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.key(middle) < key else (low, middle)
        return low


class _Tree:
    def __init__(self, pages: _Pages, root: Root | None, shape: Shape) -> None:
        self.pages, self.root, self.shape = pages, root, shape

    def _node(self, root: Root) -> _Node:
        return _Node(self.pages.read(root), root.checksum, self.shape)

    def get(self, key: bytes) -> bytes | None:
        at = self.root
        for _ in range(MAX_DEPTH):
            if at is None:
                return None
            node = self._node(at)
            i = node.position(key)
            if node.is_leaf:
                return node.value(i) if i < node.count and node.key(i) == key else None
            at = node.child(i)
        raise Damaged("a tree is too deep")

    def items(self, *, whole: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """All pairs in key order, every page verified; if the ``whole`` file is checked, without those of pages that are too large."""
        if self.root is not None:
            yield from self._items(self.root, 0, whole)

    def _items(self, root: Root, depth: int, whole: bool) -> Iterator[tuple[bytes, bytes]]:
        if depth == MAX_DEPTH:
            raise Damaged("a tree is too deep")
        try:
            node = self._node(root)
        except TooLarge:
            if whole:
                return
            raise
        if node.is_leaf:
            yield from ((node.key(i), node.value(i)) for i in range(node.count))
            return
        for i in range(node.count + 1):
            yield from self._items(node.child(i), depth + 1, whole)


def _width(raw: bytes, at: int) -> int | None:
    return int.from_bytes(raw[at + 1 : at + 5], "little") if raw[at] else None


def _table(raw: bytes, version: int) -> Table:
    kinds, at, root_bytes = ((1, 2), 1, 24) if version == 1 else ((3, 4), 9, 32)
    types = at + 1 + root_bytes + 10 + 8
    if len(raw) < types + 4 or raw[0] not in kinds:
        raise Damaged("a table definition makes no sense")
    split = types + 4 + int.from_bytes(raw[types : types + 4], "little")
    if split > len(raw):
        raise Damaged("a table definition makes no sense")
    widths = at + 1 + root_bytes
    root = Root(*_root(raw, at + 1)) if raw[at] else None
    return Table(root, Shape(_width(raw, widths), _width(raw, widths + 5)), raw[0] == kinds[1], (raw[types + 4 : split], raw[split:]))


def _verify(pages: _Pages, slot: Slot) -> None:
    """Reads every page that hangs from a slot."""
    pages.rewind()
    for root in (slot.user, slot.system):
        for name_and_definition in _Tree(pages, root, Shape()).items(whole=True):
            table = _table(name_and_definition[1], slot.version)
            for _ in _Tree(pages, table.root, table.shape).items(whole=True):
                pass
    for _ in _Tree(pages, slot.freed, _FREED).items(whole=True):
        pass


def _last_commit(pages: _Pages) -> Slot:
    """The slot that counts; after a crash, one from which every page has its checksum."""
    primary, other = pages.slots if not pages.flags & 1 else pages.slots[::-1]
    if pages.settled:
        if primary.version == 3 and not primary.sound:  # older writers did not mind, and pages have checksums of their own
            raise Damaged("its commit slot does not have its checksum")
        return primary
    candidates = [primary, other]
    if pages.flags & 4 and primary.version != 1:
        candidates = [primary]
    elif primary.sound and other.sound and other.transaction > primary.transaction:
        candidates = [other, primary]
    for slot in candidates:
        try:
            if slot.sound:
                _verify(pages, slot)
                return slot
        except CutOff:
            raise
        except Damaged:
            continue
    raise Damaged("no commit in it is whole")


class RedbStore:
    """The table ``blob_data`` of one file, as of its last commit; opened again whenever the file is another or has changed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._state: tuple[int, ...] = ()
        self._tree: _Tree
        self._run(None)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._state = -1, ()

    def row(self, key: str) -> bytes | None:
        return self._run(key.encode())[0]

    def keys(self) -> list[str]:
        return self._run(None)[1]

    def _run(self, key: bytes | None) -> tuple[bytes | None, list[str]]:
        """The blob under ``key``, or else all keys; read again if the file changed meanwhile."""
        for _ in range(ATTEMPTS):
            before = self._look()
            try:
                if before != self._state:
                    self._open(before)
                answer = self._read(key)
            except NotRedb:
                self.close()
                raise
            except Damaged as error:
                self.close()
                if self._look() == before:
                    raise CacheError(self.path, str(error)) from error
                continue
            if self._look() == before:
                return answer
            self.close()
        raise CacheBusy(self.path, "it changes faster than it can be read")

    def _look(self) -> tuple[int, ...]:
        try:
            found = Path(self.path).stat()
        except OSError as error:
            self.close()
            raise CacheError(self.path, "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)) from error
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _open(self, state: tuple[int, ...]) -> None:
        self.close()
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        pages = _Pages(self._fd)
        slot = _last_commit(pages)
        pages.rewind()
        raw = _Tree(pages, slot.user, Shape()).get(TABLE)
        if raw is None:
            raise Damaged("it has no table blob_data")
        table = _table(raw, slot.version)
        if table.multimap or table.types != (_STR, _BYTES) or table.shape != Shape():
            raise Damaged("its table blob_data is of another type")
        self._tree, self._state = _Tree(pages, table.root, Shape()), state

    def _read(self, key: bytes | None) -> tuple[bytes | None, list[str]]:
        self._tree.pages.rewind()
        if key is not None:
            return self._tree.get(key), []
        return None, [name.decode(errors="replace") for name, _ in self._tree.items()]
