"""The directory of unpacked layers, safe against crashes and shared by processes.

::

    ROOT/lock       shared by whoever adds or mounts layers, exclusive for whoever collects them
    ROOT/l/ID       a complete layer directory; it comes into being by a rename, and never changes
    ROOT/t/NAME     a layer in the making; its maker holds a lock on the directory, so one without a lock is a dead maker's
    ROOT/u/ID.BOOT  a mark of a layer whose files may not be on the disk yet, with the boot of the machine that it was made in

A mark is made before its layer's rename, and file systems keep that order. After a power cut, layers with a mark of an earlier boot are
removed; so no pull has to wait for the disk.

A layer's ID is made from its diff_id, and tells one that lists its root directory from one that does not. If it has other *implied*
directories (see `unpack`), their mode and owner depend on the layers below, and the ID is made from those too; so it is if it has hard
links to their files.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from zlayer_driver.host import mounts
from zlayer_driver.image.merged import OPAQUE, Parts, is_directory, is_opaque, link_at, shown_at
from zlayer_driver.image.unpack import Unpacked
from zlayer_driver.readings import Pruned

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ID_CHARS = 26  # base32 characters: 130 bits, and short enough for hundreds of layers in one mount's options


def _layer_id(kind: str, digests: Sequence[str]) -> str:
    seen = hashlib.sha256("\n".join((kind, *digests)).encode()).digest()
    return base64.b32encode(seen).decode().lower()[:_ID_CHARS]


class LayerStore:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._made = root / "l"
        self._making = root / "t"
        self._marks = root / "u"
        self._boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "always"

    def open(self) -> None:
        """Makes the directories, closed to other users: layers have setuid files that must not be run from here. Removes doubtful layers."""
        self._root.mkdir(mode=0o711, parents=True, exist_ok=True)
        for directory in (self._made, self._making, self._marks):
            directory.mkdir(mode=0o700, exist_ok=True)
        if self._doubtful():
            with ExitStack() as graves, self._locked(fcntl.LOCK_EX):
                for mark in self._doubtful():  # fewer now, if another process was first
                    with suppress(FileNotFoundError):
                        (self._made / mark.stem).rename(graves.enter_context(self.making()))
                    mark.unlink()

    def _doubtful(self) -> list[Path]:
        return [mark for mark in self._marks.iterdir() if mark.suffix != f".{self._boot}"]

    def settle(self) -> None:
        """Has all layers on the disk, and says so. Takes as long as the disk does."""
        if marks := list(self._marks.iterdir()):
            mounts.sync(self._root)
            for mark in marks:
                mark.unlink(missing_ok=True)

    def has(self, diff_ids: Sequence[str]) -> bool:
        """Whether the uppermost of these layers (bottom first) is probably here; `find_all` knows once those below it are."""
        return any(path.is_dir() for path in self._paths(diff_ids))

    def find_all(self, diff_ids: Sequence[str]) -> tuple[Path, ...] | None:
        """The directories of an image, bottom first, or ``None`` if one is missing.

        Those below an opaque root are left out. So are the lower ones of a layer that occurs again: the upper one decides every name that
        they have, and overlayfs takes no directory twice.
        """
        found: list[Path] = []
        for count in range(1, len(diff_ids) + 1):
            listed, bare, chained = self._paths(diff_ids[:count])
            candidates = (listed, bare, chained) if _has_plain_root(found) else (listed, chained)
            path = next((path for path in candidates if path.is_dir()), None)
            if path is None:
                return None
            if is_opaque(path):
                found.clear()
            found.append(path)
        return tuple(reversed(dict.fromkeys(reversed(found))))

    def _paths(self, diff_ids: Sequence[str]) -> tuple[Path, Path, Path]:
        names = _layer_id("layer", diff_ids[-1:]), _layer_id("bare", diff_ids[-1:]), _layer_id("chain", diff_ids)
        return self._made / names[0], self._made / names[1], self._made / names[2]

    @contextmanager
    def making(self) -> Iterator[Path]:
        """An empty directory to unpack into, removed at the end unless `keep` has taken it."""
        path, fd = self._make()
        try:
            yield path
        finally:
            if path.exists():
                shutil.rmtree(path)
            os.close(fd)

    def _make(self) -> tuple[Path, int]:
        """A new locked directory; a collector that comes between its making and its locking may take it, so then another."""
        while True:
            path = self._making / os.urandom(8).hex()
            path.mkdir(mode=0o755)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.stat()
            except (BlockingIOError, FileNotFoundError):
                os.close(fd)
                continue
            return path, fd

    def keep(self, made: Path, unpacked: Unpacked, diff_ids: Sequence[str]) -> bool:
        """Makes an unpacked layer one of the store's; false, and nothing done, if it has to be unpacked with the layers below in view.

        That is so if they are not here yet and it has implied directories, or if they have links in the place of those.
        """
        listed, bare, chained = self._paths(diff_ids)
        below = self.find_all(diff_ids[:-1])
        if not unpacked.implied and not unpacked.chained:
            target = listed
        elif not unpacked.chained and unpacked.implied == ((),) and (below is None or _has_plain_root(below)):
            target = bare
        elif below is None or (not unpacked.chained and any(link_at(parts, below) is not None for parts in unpacked.implied)):
            return False
        else:
            target = chained
            for parts in unpacked.implied:
                adopt(made, parts, below)
        (self._marks / f"{target.name}.{self._boot}").touch()
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first, and its layer is as good
                raise
        return True

    @contextmanager
    def hold(self) -> Iterator[None]:
        """While held, no layer is collected, in any process."""
        with self._locked(fcntl.LOCK_SH):
            yield

    def collect(self, needed: Callable[[], Collection[Path]], *, min_age_s: float = 0.0) -> Pruned:
        """Removes layers that no image needs and no mount uses, if they are old enough, and what dead makers left.

        Removes no layer while a pull or `hold` is under way, here or in another process.
        """
        self.sweep()
        with ExitStack() as graves:  # emptied after the lock is free: a half-removed layer must not be found by its name
            try:
                with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
                    gone = self._unneeded(needed(), time.time() - min_age_s)
                    buried = [path.rename(graves.enter_context(self.making())) for path in gone]
            except BlockingIOError:
                return Pruned()
            reclaimed = sum(_usage_bytes(grave) for grave in buried)
        return Pruned(tuple(path.name for path in gone), reclaimed)

    def mounted(self) -> set[Path]:
        """The layers that a mount shows."""
        return {layer for overlay in mounts.overlays() for layer in self.shown(overlay)}

    def shown(self, overlay: mounts.Overlay) -> tuple[Path, ...]:
        """Those of an overlay's lower directories that are layers of this store, bottom first."""
        layers = (self._made / lower.name for lower in overlay.lower)
        return tuple(layer for layer in layers if layer.is_dir() and overlay.shows(layer))

    def _unneeded(self, needed: Collection[Path], made_before: float) -> list[Path]:
        candidates = set(self._made.iterdir()).difference(needed, self.mounted())
        return [path for path in candidates if path.stat().st_ctime <= made_before]

    def sweep(self) -> None:
        """Removes half-made layers whose makers are dead."""
        for path in self._making.iterdir():
            # A maker that has just ended has removed it, or made it a layer: by that name it is no longer there then.
            with suppress(FileNotFoundError, BlockingIOError), _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_DIRECTORY):
                shutil.rmtree(path)

    def _locked(self, how: int) -> AbstractContextManager[None]:
        return _locked(self._root / "lock", how, os.O_RDWR | os.O_CREAT)  # NFS takes an exclusive lock only of who may write


@contextmanager
def _locked(path: Path, how: int, flags: int) -> Iterator[None]:
    """A flock(2) on what is at ``path``, opened with these flags."""
    fd = os.open(path, os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


def _usage_bytes(directory: Path) -> int:
    """Disk space of a tree; files with several names count once."""
    seen: dict[tuple[int, int], int] = {}
    for root, names, files in os.walk(directory):
        for name in (*names, *files):
            info = os.lstat(f"{root}/{name}")
            seen[info.st_dev, info.st_ino] = info.st_blocks * 512
    return sum(seen.values())


def _has_plain_root(below: Sequence[Path]) -> bool:
    """Whether the root directory that layers show is as it would be without them."""
    if not below:
        return True
    info = below[-1].stat()
    return (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o755, 0, 0)


def adopt(layer: Path, parts: Parts, below: Sequence[Path]) -> None:
    """Gives an implied directory what the layers below say of it."""
    mine = Path(os.fsdecode(os.path.join(os.fsencode(layer), *parts)))  # noqa: PTH118 # parts are bytes
    lower = None if is_opaque(mine) else shown_at(parts, below)
    if lower is None or not is_directory(lower):
        return
    info = lower.stat()
    os.chown(mine, info.st_uid, info.st_gid)
    for name in os.listxattr(lower):
        if name != OPAQUE:
            os.setxattr(mine, name, os.getxattr(lower, name))
    mine.chmod(stat.S_IMODE(info.st_mode))
    os.utime(mine, ns=(info.st_atime_ns, info.st_mtime_ns))
