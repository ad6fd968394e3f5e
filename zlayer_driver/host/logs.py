"""The log ends of a task: FIFOs that a log collector reads, plain files, or ``/dev/null``."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from zlayer_driver.errors import InvalidSpec


@dataclass(frozen=True, slots=True)
class LogEnds:
    """Write ends to hand to a supervisor as its stdout and stderr, and ``spares`` for it to inherit and never read."""

    stdout: int
    stderr: int
    spares: tuple[int, ...]


@contextmanager
def log_ends(stdout_path: str, stderr_path: str) -> Iterator[LogEnds]:
    """Opens both without ever blocking; the supervisor must have been started when the context ends, which closes ours.

    A FIFO gets a spare read end. It lets the write end open while nobody reads, and, held by the supervisor, it keeps
    the FIFO alive when the reader goes: the task then blocks on a full FIFO instead of dying of SIGPIPE, and a new reader gets every line.
    """
    with ExitStack() as stack:
        spares: list[int] = []

        def held(path: str, flags: int) -> int:
            try:
                fd = os.open(path, flags | os.O_NOCTTY | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise InvalidSpec(f"cannot open log {path!r}: {error.strerror}") from error
            stack.callback(os.close, fd)
            return fd

        def write_end(path: str) -> int:
            if not _is_fifo(path):
                return held(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            spares.append(held(path, os.O_RDONLY | os.O_NONBLOCK))
            return held(path, os.O_WRONLY)

        out, err = write_end(stdout_path), write_end(stderr_path)
        yield LogEnds(out, err, tuple(spares))


def hang_up(*paths: str) -> None:
    """Tells readers of FIFOs, where there are any, that nothing comes: a log collector waits seconds for a writer."""
    for path in filter(_is_fifo, paths):
        with suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(Path(path).stat().st_mode)
    except OSError:
        return False
