"""One layer archive into one layer directory, as overlayfs wants it: entries placed, whiteouts translated, nothing outside touched."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zlayer_driver import fastpath
from zlayer_driver.image.merged import Parts
from zlayer_driver.image.tar import Entry, Kind, Reader, Source
from zlayer_driver.image.tree import Tree, set_xattrs, shown, split, write_all
from zlayer_driver.image.values import Limits, Malformed

_SMALL = 64 * 1024  # bytes of a file that is written together with others
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_CONTENT_FAULTS = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.ENOENT, errno.EILSEQ})  # what a file system says of bad names
_RESERVED = b".wh..wh."  # marks of the aufs file system that mean nothing elsewhere
# (major, minor) of the character devices that root file systems commonly bring and every container gets anyway:
# null, zero, full, random, urandom, tty, console, ptmx.
_COMMON_DEVICES = frozenset({(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)})


@dataclass(frozen=True, slots=True)
class Unpacked:
    """``implied`` are directories that the archive used and did not list: their mode and owner are those of the layers below.

    ``chained`` is set if the layers below were in view, so that the result may be right above these alone.
    """

    implied: tuple[Parts, ...]
    entries: int
    chained: bool = False


def unpack(pieces: Iterable[bytes], root: Path, *, limits: Limits, allow_devices: bool = False, below: Sequence[Path] = ()) -> Unpacked:
    """Unpacks an uncompressed archive into an empty directory, and reads ``pieces`` to their end. For ``below`` see `Tree`."""
    with Tree(root, limits, below) as tree:
        layer = _Layer(tree, limits, allow_devices=allow_devices)
        reader = Reader(Source(pieces))
        for entry in reader:
            layer.add(entry, reader)
        tree.finish()
        return Unpacked(tuple(sorted(tree.implied)), layer.entries, chained=bool(below))


class _Layer:
    def __init__(self, tree: Tree, limits: Limits, *, allow_devices: bool) -> None:
        self.entries = 0
        self._tree = tree
        self._limits = limits
        self._allow_devices = allow_devices
        self._small = min(_SMALL, limits.layer_bytes)
        self._makers: dict[Kind, Callable[[Entry, Parts, Iterator[memoryview]], None]] = {
            Kind.FILE: self._file,
            Kind.DIRECTORY: self._directory,
            Kind.SYMLINK: self._symlink,
            Kind.HARD_LINK: self._hard_link,
            Kind.CHAR_DEVICE: self._device,
            Kind.BLOCK_DEVICE: self._device,
            Kind.FIFO: self._fifo,
        }

    def add(self, entry: Entry, reader: Reader) -> None:
        """Also the members after ``entry``, as far as they are plain small files in one directory with it."""
        self.entries += 1
        if self.entries > self._limits.entries:
            raise Malformed(f"a layer has more than {self._limits.entries} entries, which image_max_layer_entries allows")
        parts = split(entry.name)
        if len(parts) > self._limits.depth:
            raise Malformed(f"directories are nested more than {self._limits.depth} deep")
        marked = _WHITEOUT in entry.name and any(part.startswith(_WHITEOUT) for part in parts)
        try:
            if marked:
                self._whiteout(parts)
            else:
                self._makers[entry.kind](entry, parts, reader.data())
        except OSError as error:
            if error.errno not in _CONTENT_FAULTS:
                raise
            raise Malformed(f"{shown(entry.name)} cannot be made: {error.strerror}") from error
        if not marked:
            self._add_followers(entry, reader)

    def _add_followers(self, entry: Entry, reader: Reader) -> None:
        """Members that are not plain, and files that fail, are left to `add`, which gives way to them or tells why not."""
        name = entry.name
        prefix = name.rstrip(b"/") + b"/" if entry.kind is Kind.DIRECTORY else name[: name.rfind(b"/") + 1]
        folder = self._tree.if_open(split(prefix))
        most = self._limits.entries - self.entries
        if folder is not None:
            self.entries += reader.hand_over(lambda archive: fastpath.write_members(archive, folder, prefix, self._small, most))

    def _whiteout(self, parts: Parts) -> None:
        name = parts[-1]
        if any(part.startswith(_WHITEOUT) for part in parts[:-1]):
            if not any(part.startswith(_RESERVED) for part in parts[:-1]):
                raise Malformed(f"{shown(b'/'.join(parts))} lies below a whiteout")
        elif name == _OPAQUE:
            self._tree.make_opaque(parts[:-1])
        elif name.startswith(_RESERVED):
            return
        elif name in {b".wh.", b".wh..", b".wh..."}:
            raise Malformed(f"{shown(b'/'.join(parts))} is a whiteout of no name, of its own directory or of its parent")
        else:
            self._tree.white_out((*parts[:-1], name.removeprefix(_WHITEOUT)))

    def _file(self, entry: Entry, parts: Parts, data: Iterator[memoryview]) -> None:
        if max(entry.size, entry.real_size) > self._limits.layer_bytes:
            raise Malformed(f"{shown(entry.name)} is larger than {self._limits.layer_bytes} bytes")
        fd = self._tree.new_file(parts)
        try:
            if entry.segments is None:
                write_all(fd, data)
            else:
                _write_sparse(fd, entry, data)
            _describe(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _directory(self, entry: Entry, parts: Parts, _data: Iterator[memoryview]) -> None:
        _describe(self._tree.described_directory(parts, entry.mtime_ns), entry)

    def _symlink(self, entry: Entry, parts: Parts, _data: Iterator[memoryview]) -> None:
        parent, name = self._tree.make_way(parts)
        os.symlink(entry.target, name, dir_fd=parent)
        _describe_by_name(parent, name, entry)

    def _hard_link(self, entry: Entry, parts: Parts, _data: Iterator[memoryview]) -> None:
        self._tree.link(split(entry.target), parts)

    def _fifo(self, entry: Entry, parts: Parts, _data: Iterator[memoryview]) -> None:
        parent, name = self._tree.make_way(parts)
        os.mkfifo(name, 0o600, dir_fd=parent)
        _describe_by_name(parent, name, entry)

    def _device(self, entry: Entry, parts: Parts, _data: Iterator[memoryview]) -> None:
        common = entry.kind is Kind.CHAR_DEVICE and entry.device in _COMMON_DEVICES
        if not common and (not self._allow_devices or entry.device == (0, 0)):
            raise Malformed(
                f"{shown(entry.name)} is device {entry.device[0]}:{entry.device[1]}, which images may not bring without allow_image_devices"
            )
        parent, name = self._tree.make_way(parts)
        kind = stat.S_IFCHR if entry.kind is Kind.CHAR_DEVICE else stat.S_IFBLK
        os.mknod(name, kind | 0o600, os.makedev(*entry.device), dir_fd=parent)
        _describe_by_name(parent, name, entry)


def _write_sparse(fd: int, entry: Entry, views: Iterator[memoryview]) -> None:
    os.ftruncate(fd, entry.real_size)
    data = Source(bytes(view) for view in views)
    for offset, length in entry.segments or ():
        os.lseek(fd, offset, os.SEEK_SET)
        write_all(fd, data.take(length))


def _describe(fd: int, entry: Entry) -> None:
    """Owner first: changing it takes setuid bits and capabilities away."""
    os.fchown(fd, entry.uid, entry.gid)
    if entry.xattrs:
        set_xattrs(fd, entry.xattrs)
    os.fchmod(fd, entry.mode)


def _describe_by_name(parent: int, name: bytes, entry: Entry) -> None:
    """For what must not be opened: links, devices, FIFOs."""
    os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
    if entry.xattrs:
        set_xattrs(os.fsdecode(b"/proc/self/fd/%d/%s" % (parent, name)), entry.xattrs)
    if entry.kind is not Kind.SYMLINK:
        os.chmod(name, entry.mode, dir_fd=parent)
    os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)
