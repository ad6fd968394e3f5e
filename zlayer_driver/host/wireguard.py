"""A userspace WireGuard device: its process, and its configuration protocol (wireguard.com/xplatform) on a unix socket.

The device lives in the network namespace of the thread that starts it, and outlives the plugin. Keys are hexadecimal here, as on the socket.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from zlayer_driver.errors import NetworkError
from zlayer_driver.host import processes

_SOCKETS = Path("/var/run/wireguard")
_START_S = 10.0
_ANSWER_S = 5.0
_PROGRAM = "wireguard-go"


@dataclass(frozen=True, slots=True)
class PeerState:
    """``handshake_s`` is the Unix time of the last handshake, 0 before the first; ``endpoint`` is address:port."""

    endpoint: str
    allowed: frozenset[str]
    handshake_s: int = 0


@dataclass(frozen=True, slots=True)
class DeviceState:
    listen_port: int
    has_key: bool
    peers: Mapping[str, PeerState]


def start(name: str) -> bool:
    """Makes the device, unless it runs already (false). It is ready when this returns: the starter exits once the socket listens."""
    if _runs(name):
        return False
    try:
        ended = asyncio.run(processes.capture([_PROGRAM, name], timeout_s=_START_S))
    except FileNotFoundError as error:
        raise NetworkError(f"{_PROGRAM} is not installed", hint="install it, or set the overlay's transport to vxlan") from error
    if ended.status != 0:
        raise NetworkError(f"{_PROGRAM} cannot make {name}: {ended.stderr.decode(errors='replace').strip() or ended.status}")
    return True


def stop(name: str) -> None:
    """Ends the device's process, which watches its socket; none there is fine."""
    _path(name).unlink(missing_ok=True)


def _path(name: str) -> Path:
    return _SOCKETS / f"{name}.sock"


def _runs(name: str) -> bool:
    try:
        with _connected(name):
            return True
    except OSError as error:
        if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
            raise
        _path(name).unlink(missing_ok=True)  # of a process that was killed
        return False


def _connected(name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(_ANSWER_S)
        connection.connect(str(_path(name)))
    except OSError:
        connection.close()
        raise
    return connection


def configure(name: str, lines: Iterable[str]) -> None:
    """A ``set`` operation: ``key=value`` lines, a peer's after its ``public_key``."""
    answer = dict(_ask(name, "\n".join(["set=1", *lines, "", ""])))
    if (number := answer.get("errno")) != "0":
        raise NetworkError(f"the WireGuard device {name} refused its configuration (errno {number})")


def state(name: str) -> DeviceState:
    """A ``get`` operation."""
    listen_port, has_key = 0, False
    peers: dict[str, dict[str, str]] = {}
    allowed: dict[str, set[str]] = {}
    current = ""
    for key, value in _ask(name, "get=1\n\n"):
        match key:
            case "private_key":
                has_key = value.strip("0") != ""
            case "listen_port":
                listen_port = int(value)
            case "public_key":
                current = value
                peers[current], allowed[current] = {}, set()
            case "allowed_ip":
                allowed[current].add(value)
            case _ if current:
                peers[current][key] = value
    found = {
        peer: PeerState(values.get("endpoint", ""), frozenset(allowed[peer]), int(values.get("last_handshake_time_sec", 0)))
        for peer, values in peers.items()
    }
    return DeviceState(listen_port, has_key, found)


def _ask(name: str, request: str) -> Iterator[tuple[str, str]]:
    with _connected(name) as connection, connection.makefile("rw", encoding="ascii", newline="\n") as stream:
        stream.write(request)
        stream.flush()
        for line in stream:
            if line == "\n":
                return
            key, _, value = line.rstrip("\n").partition("=")
            yield key, value
