"""Carries a container's output from an engine to the task's logs, and outlives the driver that started it.

A program of its own that imports the standard library alone, run by its path::

    engine_follower.py SOCKET CONTAINER PID LOCK READY STDOUT STDERR

PID is the container's, 0 before its start; the rest are inherited descriptors. It goes on as an orphan, writes its pid to LOCK, attaches to
the container, closes READY after writing ``ok`` (or why it could not), and ends when the container's output has. The engine holds the container
back while the logs take nothing, as a pipe would.

Podman sets up a container anew that it is asked to attach to after its end, and forgets its exit. So nobody attaches whose process has ended.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time

_FIRST_RETRY_S, _LAST_RETRY_S = 0.05, 2.0
_HEAD = 8
_HEAD_LIMIT_BYTES = 65536
_REASON_BYTES = 2048
_PIECE_BYTES = 65536
_SILENCE_S = 1.0


class Follower:
    """``sinks`` are descriptors by the channel's number in Docker's frames: 1 is standard output, 2 standard error."""

    def __init__(self, address: str, container: str, sinks: dict[int, int]) -> None:
        self._address = address
        self._container = container
        self._sinks = sinks

    def attach(self) -> socket.socket:
        """A connection that carries frames from now on; `OSError` else."""
        path = f"/containers/{self._container}/attach?stream=1&stdout=1&stderr=1"
        return self._ask(f"POST {path} HTTP/1.1", "Connection: Upgrade", "Upgrade: tcp", "Content-Length: 0")

    def carry(self, connection: socket.socket, silence_s: float | None = None) -> None:
        """Returns when the engine ends the stream; with ``silence_s``, also after so long a silence if the container runs no more."""
        with connection:
            while self._more(connection, silence_s) and len(head := connection.recv(_HEAD, socket.MSG_WAITALL)) == _HEAD:
                left, sink = int.from_bytes(head[4:], "big"), self._sinks[2 if head[0] == 2 else 1]
                while left and (piece := connection.recv(min(left, _PIECE_BYTES))):
                    left -= len(piece)
                    _write(sink, piece)

    def _more(self, connection: socket.socket, silence_s: float | None) -> bool:
        while not select.select([connection], [], [], silence_s)[0]:
            if not lives(self.pid()):
                return False
        return True

    def pid(self) -> int:
        """Of the container as it runs or is paused, 0 else; `OSError` while the engine does not answer."""
        try:
            connection = self._ask(f"GET /containers/{self._container}/json HTTP/1.0")  # of 1.0, so that the body has no chunks
        except FileNotFoundError:
            return 0
        with connection, connection.makefile("rb") as stream:
            try:
                state = json.loads(stream.read())["State"]
                return int(state["Pid"]) if state["Running"] or state.get("Paused") else 0
            except (ValueError, KeyError, TypeError) as error:
                raise OSError("the engine broke off its answer") from error

    def _ask(self, request: str, *headers: str) -> socket.socket:
        """The connection, read up to the body of the answer."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self._address)
            connection.sendall("\r\n".join((request, "Host: engine", *headers, "", "")).encode())
            _expect_success(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def lives(pid: int) -> bool:
    """Whether the process is there and no zombie: it has ended some time before its engine says so."""
    try:
        handle = os.pidfd_open(pid) if pid else -1
    except ProcessLookupError:
        handle = -1
    if handle < 0:
        return False
    ended = bool(select.select([handle], [], [], 0)[0])
    os.close(handle)
    return not ended


def _expect_success(connection: socket.socket) -> None:
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        if len(head) > _HEAD_LIMIT_BYTES or not (byte := connection.recv(1)):
            raise OSError("the engine gave no answer")
        head += byte
    status = bytes(head).split(None, 2)[1]
    if status == b"404":
        raise FileNotFoundError("the engine does not have the container")
    if status not in {b"101", b"200"}:
        raise OSError(f"the engine answers {status.decode('ascii', 'replace')}: {_reason(connection.recv(_REASON_BYTES))}")


def _reason(body: bytes) -> str:
    """The message in the engine's JSON, else its text."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace").strip()


def _write(fd: int, data: bytes) -> None:
    """All of it. A log that takes no more, as on a full disk, ends the program: the container must go on."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        sys.exit(f"log: {error.strerror}")


def main(address: str, container: str, pid: int, lock: int, ready: int, stdout: int, stderr: int) -> int:
    """The exit status: 1 if it could not attach at first. An engine that restarts is attached to again."""
    if os.fork():
        os._exit(0)
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    follower = Follower(address, container, {1: stdout, 2: stderr})
    try:
        connection = follower.attach() if pid == 0 or lives(pid) else None
    except OSError as error:
        _write(ready, str(error).encode())
        return 1
    _write(ready, b"ok")
    os.close(ready)
    if connection is not None:
        _follow(follower, connection)
    return 0


def _follow(follower: Follower, connection: socket.socket) -> None:
    pause_s, silence_s = _FIRST_RETRY_S, None
    while True:
        try:
            follower.carry(connection, silence_s)
            if not lives(follower.pid()):
                return
            connection, silence_s = follower.attach(), _SILENCE_S
            pause_s = _FIRST_RETRY_S
        except OSError:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_RETRY_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:8])))
