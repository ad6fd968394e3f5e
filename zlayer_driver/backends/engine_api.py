"""The HTTP API of a container engine on its unix socket: calls, answers that are still coming, and taken-over connections.

Docker's API (https://docs.docker.com/reference/api/engine/version/v1.41/), which Podman speaks too. Paths carry no version, so that each
engine answers in its newest: Docker 29 no longer knows 1.41. `httpx2` is imported at first use.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from zlayer_driver.errors import EngineError, NotFound

if TYPE_CHECKING:
    import httpx2

Doc = dict[str, Any]
Query = Mapping[str, str | int]

LIBPOD: Final = "/v4.3.0/libpod"  # Podman's own API, whose paths do carry a version: the oldest that has what is used of it
_ANSWER_S: Final = 60.0
_LIMIT_BYTES: Final = 64 << 20
_GONE: Final = 404
_CONFLICT: Final = 409
_FIRST_FAILURE: Final = 400
_CREDENTIALS: Final = struct.Struct("iII")  # unix(7): pid, uid, gid


@dataclass(frozen=True, slots=True)
class Engine:
    """What tells one engine from the other, beyond the API that both speak."""

    name: str
    socket: str
    log_driver: str
    joins_netns: bool  # a network namespace by its path
    seccomp_by_path: bool  # else the filter itself goes into the request
    is_podman: bool  # has Podman's own API too, for what it does otherwise


PODMAN: Final = Engine("podman", "/run/podman/podman.sock", "k8s-file", joins_netns=True, seccomp_by_path=True, is_podman=True)
DOCKER: Final = Engine("docker", "/var/run/docker.sock", "json-file", joins_netns=False, seccomp_by_path=False, is_podman=False)


class Wire(Protocol):
    """Both directions of a connection that the engine has handed over."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes: ...

    async def write(self, buffer: bytes, timeout: float | None = None) -> None: ...

    def get_extra_info(self, info: str) -> Any: ...


class Api:
    """Each call has a connection of its own: those that wait for an exit stay open for days, and nothing needs closing in the end."""

    def __init__(self, engine: Engine, address: str = "") -> None:
        self.engine = engine
        self.socket = address or engine.socket
        self._http: httpx2.AsyncClient | None = None

    async def call(
        self, method: str, path: str, *, query: Query | None = None, body: Doc | None = None, container: str = "", wait_s: float = _ANSWER_S
    ) -> Any:
        """The JSON of the answer, ``None`` if it is empty or plain text. ``wait_s`` 0 waits for ever.

        `NotFound` for what the engine does not have and, of the ``container`` that is named, for what cannot be done as it does not run.
        """
        async with self.stream(method, path, query=query, body=body, container=container, wait_s=wait_s) as answer:
            raw = await _whole(answer)
            is_text = answer.headers.get("content-type", "").startswith("text/plain")
        try:
            return json.loads(raw) if raw.strip() and not is_text else None
        except (ValueError, RecursionError) as error:
            raise self._failed(method, path, "the answer is no JSON") from error

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Doc | None = None,
        container: str = "",
        wait_s: float = 0,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[httpx2.Response]:
        """An answer whose body is still to be read. Errors as of `call`."""
        import httpx2  # noqa: PLC0415  # see above

        timeout = httpx2.Timeout(_ANSWER_S, read=wait_s or None)
        try:
            async with self._client().stream(method, path, params=query, json=body, headers=headers, timeout=timeout) as answer:
                if answer.status_code >= _FIRST_FAILURE:
                    raise self._refused(method, path, answer.status_code, await _whole(answer), container)
                yield answer
        except httpx2.TransportError as error:
            hint = f"is the {self.engine.name} service running, and does engine_socket name its socket?"
            raise self._failed(method, path, f"{type(error).__name__} {error}".rstrip(), hint=hint, recoverable=True) from error

    @asynccontextmanager
    async def take_over(self, path: str, *, body: Doc) -> AsyncIterator[Wire]:
        """The connection itself, after the engine has switched it to raw bytes in both directions."""
        async with self.stream("POST", path, body=body, headers={"Connection": "Upgrade", "Upgrade": "tcp"}) as answer:
            wire: Wire = answer.extensions["network_stream"]
            yield wire

    def pid(self) -> int:
        """Of the process that listens at the socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(self.socket)
            except OSError as error:
                raise self._failed("connect", self.socket, str(error), recoverable=True) from error
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(credentials)[0])

    def _client(self) -> httpx2.AsyncClient:
        import httpx2  # noqa: PLC0415  # see above

        if self._http is None:
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
            transport = httpx2.AsyncHTTPTransport(uds=self.socket, limits=limits)
            self._http = httpx2.AsyncClient(base_url="http://engine", transport=transport, trust_env=False)
        return self._http

    def _refused(self, method: str, path: str, status: int, raw: bytes, container: str) -> EngineError | NotFound:
        cause, message = "", raw.decode("utf-8", "replace")
        try:
            doc = json.loads(raw)
            cause, message = str(doc.get("cause", "")), str(doc["message"])
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            pass  # the text itself is the message
        if status == _GONE or (container and (status == _CONFLICT or cause == "container state improper")):
            return NotFound(container or path, f"{self.engine.name} says: {message[:500].strip()}")
        return self._failed(method, path, message[:2000].strip(), status=status)

    def _failed(self, method: str, path: str, reason: str, *, status: int = 0, hint: str = "", recoverable: bool = False) -> EngineError:
        return EngineError(f"{self.engine.name}: {method} {path}", reason, status=status, hint=hint, recoverable=recoverable)


async def _whole(answer: httpx2.Response) -> bytes:
    raw = bytearray()
    async for piece in answer.aiter_bytes():
        raw += piece
        if len(raw) > _LIMIT_BYTES:
            raise EngineError(f"answer of {answer.url.path}", f"it has more than {_LIMIT_BYTES} bytes")
    return bytes(raw)
