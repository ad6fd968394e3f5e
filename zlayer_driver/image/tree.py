"""Writing a layer's directory: every step is relative to an open directory, and no symbolic link is ever followed by the kernel.

Links in the middle of a path are followed by hand, with the layer's root as ``/`` and as its own parent, so a path cannot leave the layer.
The tree is private to the one thread that writes it. Deleted lower entries are overlayfs whiteouts (a character device 0:0), hidden lower
directories have the xattr ``trusted.overlay.opaque`` (kernel documentation, overlayfs.rst).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from zlayer_driver.image.merged import OPAQUE, Parts, is_whiteout, link_at, shown_at
from zlayer_driver.image.values import MIB, Limits, LowerNeeded, Malformed

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORIES = 48  # kept open between entries, which mostly share their parents
_MAX_LINKS = 40  # as the kernel's own limit
# Labels and hashes of the building host mean nothing here; overlayfs' own would be orders to it.
_DROPPED_XATTRS = (b"trusted.overlay.", b"user.overlay.", b"security.selinux", b"security.ima", b"security.evm")


def split(name: bytes) -> Parts:
    """The components of a member's name. A leading ``/`` means the layer's root; ``..`` is refused."""
    parts = tuple(part for part in name.split(b"/") if part not in {b"", b"."})
    if b".." in parts:
        raise Malformed(f"{shown(name)} has '..' in it")
    return parts


def shown(name: bytes) -> str:
    """A name for an error text."""
    return repr(name[:200].decode("utf-8", "backslashreplace"))


def look(name: bytes, at: int) -> os.stat_result | None:
    """What is at a name in an open directory, not following links."""
    try:
        return os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return None


class Tree:
    """An open layer directory. ``implied`` are directories that were needed and that no entry has described yet.

    ``below`` are the layers beneath, bottom first, as far as they are known: links that they have on the way to an entry are followed too.
    """

    def __init__(self, root: Path, limits: Limits, below: Sequence[Path] = ()) -> None:
        self._below = below
        self.implied: set[Parts] = {()}
        self._limits = limits
        self._open: dict[Parts, int] = {(): os.open(root, _DIRECTORY)}
        self._times: dict[Parts, int] = {}
        self._copied_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def directory(self, parts: Parts) -> int:
        """An open directory, made where it is missing. The number is good until the next call."""
        return self._opened(self._real(parts))

    def if_open(self, parts: Parts) -> int | None:
        """A directory that no link leads to, if it is open just now. The number is good until the next call of another kind."""
        return self._open.get(parts)

    def described_directory(self, parts: Parts, mtime_ns: int) -> int:
        """Like `directory`, for one that has an entry of its own: what is there and no directory gives way. Its time is set at the end."""
        here = self._place(parts) if parts else ()
        if here:
            parent = self._opened(here[:-1])
            info = look(here[-1], parent)
            if info is None or not stat.S_ISDIR(info.st_mode):
                self._make_directory(parent, here[-1], info)
        self.implied.discard(here)
        self._times[here] = mtime_ns
        return self._opened(here)

    def make_way(self, parts: Parts) -> tuple[int, bytes]:
        """The open parent and the last name of a path, at which nothing is any more."""
        here = self._place(parts)
        parent, name = self._opened(here[:-1]), here[-1]
        info = look(name, parent)
        if info is not None and stat.S_ISDIR(info.st_mode):
            self._close_all_but_root()  # some of them may be about to go
            parent = self._opened(here[:-1])
            self._forget(here, parent)
            shutil.rmtree(name, dir_fd=parent)
        elif info is not None:
            os.unlink(name, dir_fd=parent)
        return parent, name

    def new_file(self, parts: Parts) -> int:
        """A new, empty regular file, open for writing; the caller closes it."""
        here = self._place(parts)
        try:
            return os.open(here[-1], _NEW_FILE, 0o600, dir_fd=self._opened(here[:-1]))
        except FileExistsError:
            parent, name = self.make_way(here)
            return os.open(name, _NEW_FILE, 0o600, dir_fd=parent)

    def link(self, source: Parts, parts: Parts) -> None:
        """A hard link to a file that the tree has already, or that a layer below has: that one is copied first, as overlayfs does it."""
        here = self._place(parts)
        origin = self._origin(source, parts)
        if origin == here:
            raise Malformed(f"{shown(b'/'.join(parts))} is a hard link to itself")
        parent, name = self.make_way(here)
        os.link(origin[-1], name, src_dir_fd=self._opened(origin[:-1]), dst_dir_fd=parent, follow_symlinks=False)

    def _origin(self, source: Parts, parts: Parts) -> Parts:
        try:
            return self._existing(source)
        except FileNotFoundError as error:
            if self._below and source and (copy := self._copied_up(source)):
                return copy
            names = shown(b"/".join(parts)), shown(b"/".join(source))
            what = "which is no file that its layer has before it, nor a regular one of the layers below"
            raise (Malformed if self._below else LowerNeeded)(f"{names[0]} is a hard link to {names[1]}, {what}") from error

    def _copied_up(self, parts: Parts) -> Parts | None:
        """The real path of a regular file that only the layers below have, and now this one too."""
        here = (*self._real(parts[:-1]), parts[-1])
        hidden = look(here[-1], self._opened(here[:-1])) is not None
        if hidden or any(OPAQUE in os.listxattr(self._opened(here[:count])) for count in range(len(here))):
            return None
        lower = shown_at(here, self._below)
        if lower is None or not stat.S_ISREG(lower.lstat().st_mode):
            return None
        self._copied_bytes += lower.stat().st_size
        if self._copied_bytes > self._limits.ratio_free_bytes:
            raise Malformed(f"a layer links to more than {self._limits.ratio_free_bytes} bytes of the layers below")
        fd = self.new_file(here)
        try:
            _copy(lower, fd)
        finally:
            os.close(fd)
        return here

    def _existing(self, parts: Parts) -> Parts:
        """The real path of something in the tree that is no directory and no whiteout, or `FileNotFoundError`."""
        here = (*self._real(parts[:-1], make=False), *parts[-1:])
        info = look(here[-1], self._opened(here[:-1])) if here else None
        if info is None or stat.S_ISDIR(info.st_mode) or is_whiteout(info):
            raise FileNotFoundError(errno.ENOENT, "no file", b"/".join(parts))
        return here

    def white_out(self, parts: Parts) -> None:
        """Hides what lower layers have at a path. What this layer itself has there stays, whichever came first."""
        here = self._place(parts)
        parent = self._opened(here[:-1])
        info = look(here[-1], parent)
        if info is None:
            os.mknod(here[-1], stat.S_IFCHR, 0, dir_fd=parent)
        elif stat.S_ISDIR(info.st_mode):
            self.make_opaque(here)

    def make_opaque(self, parts: Parts) -> None:
        """Hides what lower layers have in a directory."""
        os.setxattr(self.directory(parts), OPAQUE, b"y")

    def finish(self) -> None:
        """Sets directory times, after the last entry was made in them."""
        times = dict.fromkeys(self.implied, 0) | self._times
        for here, mtime_ns in times.items():
            if len(self._open) > _OPEN_DIRECTORIES:
                self._close_all_but_root()
            os.utime(self._opened(here), ns=(mtime_ns, mtime_ns))

    def _place(self, parts: Parts) -> Parts:
        """Where an entry of this name belongs: its parent exists, and is reached through no link."""
        if not parts:
            raise Malformed("an entry that is no directory is named like the root")
        if len(self._open) > _OPEN_DIRECTORIES:
            self._close_all_but_root()
        return (*self._real(parts[:-1]), parts[-1])

    def _real(self, parts: Parts, *, make: bool = True) -> Parts:
        """The path of a directory with every link on the way followed; missing directories are made, or `FileNotFoundError`."""
        if parts in self._open:
            return parts
        at: Parts = ()
        todo = list(reversed(parts))
        links = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                at = at[:-1]
                continue
            target = self._step(at, part, make=make)
            if target is None:
                at = (*at, part)
                self._check_depth(at)
                continue
            links += 1
            if links > _MAX_LINKS:
                raise Malformed(f"{shown(b'/'.join(parts))} goes through too many symbolic links")
            at = () if target.startswith(b"/") else at
            todo += [piece for piece in reversed(target.split(b"/")) if piece not in {b"", b"."}]
        return at

    def _step(self, at: Parts, part: bytes, *, make: bool) -> bytes | None:
        """Makes sure that a directory is at ``part``; the target, where a symbolic link is there instead."""
        here = (*at, part)
        if here in self._open:
            return None
        parent = self._opened(at)
        info = look(part, parent)
        if info is not None and stat.S_ISLNK(info.st_mode):
            return os.readlink(part, dir_fd=parent)
        if info is None and (target := link_at(here, self._below)) is not None:
            return target
        if info is None and not make:
            raise FileNotFoundError(errno.ENOENT, "no directory", part)
        if info is None or is_whiteout(info):
            self._make_directory(parent, part, info)
            self.implied.add(here)
        elif not stat.S_ISDIR(info.st_mode):
            raise Malformed(f"{shown(b'/'.join(here))} is used as a directory and is none")
        return None

    def _make_directory(self, parent: int, name: bytes, there: os.stat_result | None) -> None:
        """A directory in the place of what was there. If that was something, it hid what lower layers have, and so must the directory."""
        if there is not None:
            os.unlink(name, dir_fd=parent)
        os.mkdir(name, 0o755, dir_fd=parent)
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            os.fchmod(fd, 0o755)
            if there is not None:
                os.setxattr(fd, OPAQUE, b"y")
        finally:
            os.close(fd)

    def _opened(self, at: Parts) -> int:
        fd = self._open.get(at)
        if fd is None:
            fd = self._open[at] = os.open(at[-1], _DIRECTORY, dir_fd=self._opened(at[:-1]))
        return fd

    def _check_depth(self, at: Parts) -> None:
        if len(at) > self._limits.depth:
            raise Malformed(f"directories are nested more than {self._limits.depth} deep")

    def _forget(self, top: Parts, parent: int) -> None:
        """Of a directory and those in it. They are looked for where they lie: looking through all that is known would take too long."""
        for path, *_ in os.fwalk(top[-1], dir_fd=parent):
            gone = (*top[:-1], *path.split(b"/"))
            self.implied.discard(gone)
            self._times.pop(gone, None)

    def _close_all_but_root(self) -> None:
        root = self._open.pop(())
        self._close()
        self._open[()] = root

    def _close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


def set_xattrs(path: int | str, xattrs: Mapping[bytes, bytes]) -> None:
    """Extended attributes of an entry, without those that would be orders to the host. File systems without ``user.*`` go without."""
    for name, value in xattrs.items():
        if name.startswith(_DROPPED_XATTRS):
            continue
        try:
            os.setxattr(path, name, value, follow_symlinks=isinstance(path, int))
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise
            if error.errno != errno.ENOTSUP:
                raise Malformed(f"extended attribute {shown(name)} cannot be set: {error.strerror}") from error


def _copy(file: Path, fd: int) -> None:
    """Content and all properties of a regular file, into a new one."""
    with file.open("rb") as source:
        while piece := source.read(MIB):
            write_all(fd, [memoryview(piece)])
    info = file.stat()
    os.fchown(fd, info.st_uid, info.st_gid)
    set_xattrs(fd, {os.fsencode(name): os.getxattr(file, name) for name in os.listxattr(file)})
    os.fchmod(fd, stat.S_IMODE(info.st_mode))
    os.utime(fd, ns=(info.st_atime_ns, info.st_mtime_ns))


def write_all(fd: int, views: Iterable[memoryview]) -> None:
    for view in views:
        rest = view
        while rest:
            rest = rest[os.write(fd, rest) :]
