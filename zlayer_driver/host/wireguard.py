"""WireGuard devices, and the userspace one: its process, and its configuration protocol (wireguard.com/xplatform) on a unix socket.

A device lives in the network namespace of the thread that makes it, and outlives the plugin. Keys are in base64.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zlayer_driver.errors import NetworkError, Unsupported
from zlayer_driver.host import processes

_SOCKETS = Path("/var/run/wireguard")
_START_S = 10.0
_ANSWER_S = 5.0
_PROGRAM = "wireguard-go"


@dataclass(frozen=True, slots=True)
class PeerState:
    """``handshake_s`` is the Unix time of the last handshake, 0 before the first; ``endpoint`` is as `endpoint_text` writes it."""

    endpoint: str
    allowed: frozenset[str]
    handshake_s: int = 0


@dataclass(frozen=True, slots=True)
class DeviceState:
    listen_port: int
    peers: Mapping[str, PeerState]


@dataclass(frozen=True, slots=True)
class PeerChange:
    """A peer to set, with exactly these ``allowed`` networks, or to ``remove``. ``endpoint`` is an address and a port."""

    public_key: str
    allowed: tuple[str, ...] = ()
    endpoint: tuple[str, int] | None = None
    keepalive_s: int = 0
    remove: bool = False


class Device(Protocol):
    def ensure(self) -> bool:
        """Makes the device unless it is there; false where this kind of device cannot be made here."""
        ...

    def configure(self, peers: Sequence[PeerChange] = (), *, private_key: str = "", listen_port: int = 0) -> None:
        """Sets what is given and leaves the rest alone."""
        ...

    def state(self) -> DeviceState: ...

    def remove(self) -> None:
        """Ends the device; none there is fine."""
        ...


def endpoint_text(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Userspace:
    """A process that is the device, whatever the kernel."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._path = _SOCKETS / f"{name}.sock"

    def ensure(self) -> bool:
        """It is ready when this returns: the starter exits once the socket listens."""
        if self.runs():
            return True
        try:
            ended = asyncio.run(processes.capture([_PROGRAM, self._name], timeout_s=_START_S))
        except Unsupported as error:
            raise NetworkError(error.message, hint=f"install {_PROGRAM}, or set the overlay's transport to vxlan") from error
        if ended.status != 0:
            raise NetworkError(f"{_PROGRAM} cannot make {self._name}: {ended.stderr.decode(errors='replace').strip() or ended.status}")
        return True

    def remove(self) -> None:
        """The process watches its socket, and ends with it."""
        self._path.unlink(missing_ok=True)

    def runs(self) -> bool:
        try:
            with self._connected():
                return True
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                raise
            self._path.unlink(missing_ok=True)  # of a process that was killed
            return False

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(_ANSWER_S)
            connection.connect(str(self._path))
        except OSError:
            connection.close()
            raise
        return connection

    def configure(self, peers: Sequence[PeerChange] = (), *, private_key: str = "", listen_port: int = 0) -> None:
        own = [f"private_key={_hex(private_key)}"] if private_key else []
        own += [f"listen_port={listen_port}"] if listen_port else []
        lines = [*own, *(line for peer in peers for line in _peer_lines(peer))]
        answer = dict(self._ask("\n".join(["set=1", *lines, "", ""])))
        if (number := answer.get("errno")) != "0":
            raise NetworkError(f"the WireGuard device {self._name} refused its configuration (errno {number})")

    def state(self) -> DeviceState:
        listen_port = 0
        peers: dict[str, dict[str, str]] = {}
        allowed: dict[str, set[str]] = {}
        current = ""
        for key, value in self._ask("get=1\n\n"):
            match key:
                case "listen_port":
                    listen_port = int(value)
                case "public_key":
                    current = base64.b64encode(bytes.fromhex(value)).decode()
                    peers[current], allowed[current] = {}, set()
                case "allowed_ip":
                    allowed[current].add(value)
                case _ if current:
                    peers[current][key] = value
        found = {
            peer: PeerState(values.get("endpoint", ""), frozenset(allowed[peer]), int(values.get("last_handshake_time_sec", 0)))
            for peer, values in peers.items()
        }
        return DeviceState(listen_port, found)

    def _ask(self, request: str) -> Iterator[tuple[str, str]]:
        with self._connected() as connection, connection.makefile("rw", encoding="ascii", newline="\n") as stream:
            stream.write(request)
            stream.flush()
            for line in stream:
                if line == "\n":
                    return
                key, _, value = line.rstrip("\n").partition("=")
                yield key, value


def _peer_lines(peer: PeerChange) -> Iterable[str]:
    yield f"public_key={_hex(peer.public_key)}"
    if peer.remove:
        yield "remove=true"
        return
    if peer.endpoint:
        yield f"endpoint={endpoint_text(*peer.endpoint)}"
    if peer.keepalive_s:
        yield f"persistent_keepalive_interval={peer.keepalive_s}"
    yield "replace_allowed_ips=true"
    yield from (f"allowed_ip={network}" for network in peer.allowed)


def _hex(key: str) -> str:
    return base64.b64decode(key).hex()
