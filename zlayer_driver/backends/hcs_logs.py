"""Copies a container's output to where the task's logs go: the logging driver of a ``binary://`` URI, as the runhcs shim starts it.

A program of its own, run by its path with the standard library alone. The shim gives it the named pipes of the container in the variables
``CONTAINER_STDOUT`` and ``CONTAINER_STDERR``, and waits for ``CONTAINER_WAIT`` to be opened and closed (hcsshim, `internal/cmd/io_binary.go`);
its only argument is a JSON file with the paths of both logs. It belongs to the shim, so it outlives the driver. Where a log's reader has gone,
the container waits until there is one again; once it has ended, the shim gives us 10 s more.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

_CHUNK = 1 << 16
_PAUSE_S = 0.1
_BINARY: int = getattr(os, "O_BINARY", 0)  # Windows has the one, POSIX the other
_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)


def log(path: str) -> int | None:
    """``None`` as long as nobody reads it. A named pipe has no append, and a FIFO must not keep us waiting."""
    flags = os.O_WRONLY if path.startswith("//./pipe/") else os.O_WRONLY | os.O_APPEND | os.O_CREAT
    try:
        fd = os.open(os.devnull if path == "/dev/null" else path, flags | _BINARY | _NONBLOCK, 0o600)
    except OSError:
        return None
    if _NONBLOCK:
        os.set_blocking(fd, True)
    return fd


def copy(source: int, path: str) -> None:
    """Opens the log at least once where it has a reader, who may be waiting for just that."""
    target = log(path)
    while data := os.read(source, _CHUNK):
        while data:
            if target is None:
                time.sleep(_PAUSE_S)
                target = log(path)
                continue
            try:
                data = data[os.write(target, data) :]
            except OSError:
                if (again := log(path)) is None:
                    time.sleep(_PAUSE_S)
                    continue
                os.close(target)  # not before: a reader that has come meanwhile would take it for the end
                target = again
    if target is not None:
        os.close(target)


def main(file: str) -> None:
    paths = json.loads(Path(file).read_bytes())
    sources = [os.open(os.environ[f"CONTAINER_{name}"], os.O_RDONLY | _BINARY) for name in ("STDOUT", "STDERR")]
    os.close(os.open(os.environ["CONTAINER_WAIT"], os.O_WRONLY | _BINARY))
    threads = [threading.Thread(target=copy, args=pair) for pair in zip(sources, paths, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1])
