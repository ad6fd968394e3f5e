"""Named files of an image on this machine: in a directory, or in a tar archive that is read in place.

Whoever made them may be hostile: only regular files are opened, no link at a name is followed out of place, and no size is believed.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import stat
import tempfile
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from zlayer_driver.image.stream import inflated
from zlayer_driver.image.tar import BLOCK, Kind, Reader, Source
from zlayer_driver.image.values import MIB, Limits, Malformed

_READ = 64 * 1024  # between members, where nearly all is skipped
_PIECE = MIB
_MAX_INDEX = 64 * MIB  # bytes of the headers and names of all members
_MAX_LINKS = 8
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, slots=True)
class Extent:
    """A file, or a part of one: ``size`` bytes from ``offset`` of an open file, which the extent does not own."""

    fd: int
    offset: int
    size: int

    def read(self, limit: int) -> bytes:
        """All of it; `Malformed` beyond ``limit`` bytes."""
        if self.size > limit:
            raise Malformed(f"a file of {self.size} bytes, and {limit} are allowed")
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        done = 0
        while piece := os.pread(self.fd, min(_PIECE, self.size - done), self.offset + done):
            done += len(piece)
            yield piece

    async def stream(self) -> AsyncGenerator[bytes, None]:
        pieces = self.pieces()
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

    def compression(self) -> str:
        """By its first bytes: ``gzip``, ``zstd``, or empty for everything else."""
        head = os.pread(self.fd, min(4, self.size), self.offset)
        return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


class Files(Protocol):
    def extent(self, name: str, /) -> Extent:
        """`Malformed` if there is no regular file of that name."""
        ...

    def close(self) -> None: ...


def open_regular(path: str | Path, dir_fd: int | None = None) -> int:
    """Opens a regular file and nothing else: a FIFO would block, a device would not end. In an open directory, links are refused too."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if dir_fd is None else os.O_NOFOLLOW)
    fd = os.open(path, flags, dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Malformed(f"{path} is no regular file")
    return fd


def inside(fd: int, root: Path | None) -> int:
    """The same open file, if it lies in ``root``, whatever links led to it; else it is closed. A name could be exchanged after a look at it."""
    if root is not None and not Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(root.resolve()):
        os.close(fd)
        raise Malformed("it lies outside the allocation")
    return fd


def spool() -> IO[bytes]:
    """A nameless file that may grow large: in TMPDIR, else in /var/tmp, for /tmp is often memory."""
    kept = "/var/tmp"  # noqa: S108  # nobody can guess a name that there is not
    return tempfile.TemporaryFile(dir=os.environ.get("TMPDIR") or (kept if Path(kept).is_dir() else None))


class OneFile:
    """An open file that is all there is, whatever name is asked for. It is closed with this, as that of `TarFile` is."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def extent(self, _name: str) -> Extent:
        return Extent(self._fd, 0, os.fstat(self._fd).st_size)

    def close(self) -> None:
        os.close(self._fd)


class Directory:
    """The files of an OCI image layout in an open directory; no name goes through a symbolic link."""

    def __init__(self, fd: int) -> None:
        self._fds = [fd]
        self._known: dict[str, Extent] = {}

    def extent(self, name: str) -> Extent:
        if name not in self._known:
            *above, last = name.split("/")
            at = self._fds[0]
            try:
                for part in above:
                    at = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
                    self._fds.append(at)
                fd = open_regular(last, at)
            except OSError as error:
                raise Malformed(f"cannot read {name} of the image layout: {error.strerror}") from error
            self._fds.append(fd)
            self._known[name] = Extent(fd, 0, os.fstat(fd).st_size)
        return self._known[name]

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


class TarFile:
    """The members of a tar archive, found in one pass that skips their data. A compressed archive is unpacked to a nameless file first."""

    def __init__(self, fd: int, limits: Limits) -> None:
        self._fd = fd
        try:
            self._plain(limits)
            self._members = dict(_members(self._fd))
        except BaseException:
            self.close()
            raise

    def extent(self, name: str) -> Extent:
        at = posixpath.normpath(name)
        for _ in range(_MAX_LINKS):
            found = self._members.get(at)
            if isinstance(found, Extent):
                return found
            if found is None:
                break
            at = posixpath.normpath(posixpath.join(posixpath.dirname(at), found))
        raise Malformed(f"no file {name[:200]!r} in the archive")

    def close(self) -> None:
        os.close(self._fd)

    def _plain(self, limits: Limits) -> None:
        whole = Extent(self._fd, 0, os.fstat(self._fd).st_size)
        compression = whole.compression()
        if not compression:
            return
        with spool() as out:
            for piece in inflated(whole.pieces(), compression, limits):
                out.write(piece)
            out.flush()
            os.dup2(out.fileno(), self._fd, inheritable=False)


class _FileSource(Source):
    """A tar stream that skips without reading."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0  # where in the file the next piece starts
        super().__init__(self._read())

    def skip(self, count: int) -> None:
        self.position += count
        self._at += max(0, count - len(self._piece))
        self._piece = self._piece[count:]

    def drain(self) -> None:
        """Nobody hashes the archive as a whole."""

    def _read(self) -> Iterator[bytes]:
        while piece := os.pread(self._fd, _READ, self._at):
            self._at += len(piece)
            yield piece


def _members(fd: int) -> Iterator[tuple[str, Extent | str]]:
    """Files by name, and links as the names that they lead to."""
    source = _FileSource(fd)
    size, index = os.fstat(fd).st_size, 0
    for entry in Reader(source):
        index += BLOCK + len(entry.name) + len(entry.target)
        if index > _MAX_INDEX:
            raise Malformed(f"the archive's members have more than {_MAX_INDEX} bytes of headers and names")
        name = posixpath.normpath(entry.name.decode("utf-8", "surrogateescape"))
        if entry.kind is Kind.FILE and entry.segments is None:
            if source.position + entry.size > size:
                raise Malformed("the archive ends in the middle of a member")
            yield name, Extent(fd, source.position, entry.size)
        elif entry.kind is Kind.SYMLINK:
            yield name, entry.target.decode("utf-8", "surrogateescape")
        elif entry.kind is Kind.HARD_LINK:
            yield name, posixpath.relpath(entry.target.decode("utf-8", "surrogateescape") or ".", posixpath.dirname(name) or ".")
