"""Nomad's HTTP API, as far as placement needs it: lists page by page, blocking queries, and retries of what may be retried.

Where and who is read from the NOMAD_* variables that the ``nomad`` command knows. `httpx2` is imported at first use.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from zlayer_driver.errors import ConfigError, NomadError

if TYPE_CHECKING:
    from types import TracebackType

    import httpx2

Sleep = Callable[[float], Awaitable[None]]
Item = TypeVar("Item")
Result = TypeVar("Result")

_ADDRESS = "http://127.0.0.1:4646"
_ATTEMPTS = 6
_BACKOFF_S = 0.25  # doubles with each attempt
_TIMEOUT_S = 30.0
_WAIT_S = 60  # how long a blocking query may wait; Nomad adds up to a sixteenth
_PER_PAGE = 500
_TRANSIENT = frozenset({429, 502, 503, 504})
_TRANSIENT_TEXTS = ("No cluster leader", "No path to region", "rpc error", "raft", "EOF", "connection refused")  # 500 is also Nomad's «no»
_HINTS = {
    401: "is NOMAD_TOKEN set and valid?",
    403: "does the token of NOMAD_TOKEN allow this in the namespace?",
    404: "is it there, and NOMAD_ADDR right?",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where Nomad is and who asks. ``address`` is a URL, or ``unix://`` and a socket's path; paths of certificates may be empty."""

    address: str = _ADDRESS
    token: str = ""
    namespace: str = ""
    region: str = ""
    http_auth: str = ""
    ca_cert: str = ""
    ca_path: str = ""
    client_cert: str = ""
    client_key: str = ""
    tls_server_name: str = ""
    skip_verify: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        def value(name: str) -> str:
            return environment.get(f"NOMAD_{name}", "")

        address = value("ADDR") or _ADDRESS
        if not address.startswith(("http://", "https://", "unix://")):
            raise ConfigError(f"NOMAD_ADDR={address!r} is no http, https or unix URL", hint=f"set it to such as {_ADDRESS}")
        return cls(
            address=address,
            token=value("TOKEN"),
            namespace=value("NAMESPACE"),
            region=value("REGION"),
            http_auth=value("HTTP_AUTH"),
            ca_cert=value("CACERT"),
            ca_path=value("CAPATH"),
            client_cert=value("CLIENT_CERT"),
            client_key=value("CLIENT_KEY"),
            tls_server_name=value("TLS_SERVER_NAME"),
            skip_verify=value("SKIP_VERIFY").lower() in {"1", "t", "true"},
        )

    def tls(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca_cert or None, capath=self.ca_path or None)
            if self.client_cert:
                context.load_cert_chain(self.client_cert, self.client_key or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"the certificates of NOMAD_CACERT, NOMAD_CAPATH, NOMAD_CLIENT_CERT or NOMAD_CLIENT_KEY: {error}") from error
        if self.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


@dataclass(frozen=True, slots=True)
class Reply:
    """``index`` is what a blocking query waits beyond, ``next_page`` the token of the page after this one, or empty."""

    value: Any
    index: int
    next_page: str


class Nomad:
    """A connection to one agent; an async context manager."""

    def __init__(self, access: Access, *, sleep: Sleep = asyncio.sleep) -> None:
        self._access = access
        self._sleep = sleep
        self._http: httpx2.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._http is not None:
            await self._http.aclose()

    async def get(self, path: str, **query: str) -> Reply:
        return await self._call("GET", path, query)

    async def post(self, path: str, body: Mapping[str, Any], **query: str) -> Any:
        """What Nomad answers. A call that broke off is made again: give only bodies that may arrive twice."""
        return (await self._call("POST", path, query, body)).value

    async def pages(self, path: str, **query: str) -> AsyncIterator[Any]:
        """The items of a list, page by page."""
        token = ""
        while True:
            page = {"next_token": token} if token else {}
            reply = await self.get(path, per_page=str(_PER_PAGE), **page, **query)
            for item in reply.value or ():
                yield item
            token = reply.next_page
            if not token:
                return

    async def changed(self, path: str, index: int, **query: str) -> int:
        """Waits until what ``path`` tells is newer than ``index``, or a minute; the index to wait beyond next."""
        reply = await self.get(path, index=str(index), wait=f"{_WAIT_S}s", per_page="1", **query)
        return reply.index if reply.index >= index else 0  # it went back: the servers were restored from a snapshot

    async def _call(self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None = None) -> Reply:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._once(method, path, query, body)
            except NomadError as error:
                if not error.recoverable or attempt == _ATTEMPTS:
                    raise
            await self._sleep(_BACKOFF_S * 2 ** (attempt - 1))
        raise AssertionError  # the last attempt returned or raised

    async def _once(self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None) -> Reply:
        import httpx2  # noqa: PLC0415  # see above

        what = f"{method} {path} at {self._access.address}"
        scope = {key: value for key, value in (("namespace", self._access.namespace), ("region", self._access.region)) if value}
        server_name = self._access.tls_server_name
        extensions = {"sni_hostname": server_name} if server_name else {}
        try:
            answer = await self._client().request(method, path, params={**scope, **query}, json=body, extensions=extensions)
        except httpx2.TransportError as error:
            raise NomadError(what, f"{type(error).__name__}: {error}", hint="is NOMAD_ADDR right?", recoverable=True) from error
        if answer.status_code != httpx2.codes.OK:
            status, text = answer.status_code, answer.text.strip()[:500]
            transient = status in _TRANSIENT or (
                status == httpx2.codes.INTERNAL_SERVER_ERROR and any(map(text.__contains__, _TRANSIENT_TEXTS))
            )
            raise NomadError(what, f"{status} {text}", status=status, hint=_HINTS.get(status, ""), recoverable=transient)
        try:
            return Reply(answer.json(), int(answer.headers.get("X-Nomad-Index", 0)), answer.headers.get("X-Nomad-NextToken", ""))
        except ValueError as error:
            raise NomadError(what, "the answer is no JSON", hint="is this a Nomad agent?") from error

    def _client(self) -> httpx2.AsyncClient:
        import httpx2  # noqa: PLC0415  # see above

        if self._http is None:
            at = self._access
            is_socket = at.address.startswith("unix://")
            transport = httpx2.AsyncHTTPTransport(uds=at.address.removeprefix("unix://")) if is_socket else None
            user, _, password = at.http_auth.partition(":")
            self._http = httpx2.AsyncClient(
                base_url="http://nomad" if is_socket else at.address,
                headers={"X-Nomad-Token": at.token} if at.token else {},
                auth=(user, password) if user else None,
                timeout=httpx2.Timeout(_TIMEOUT_S, read=2 * _WAIT_S),
                verify=at.tls() if at.address.startswith("https") else True,
                transport=transport,
                trust_env=False,
            )
        return self._http


async def in_parallel(call: Callable[[Item], Awaitable[Result]], items: Iterable[Item], at_once: int = 16) -> list[Result]:
    """What ``call`` says of each item, in their order; the first failure ends the others and comes out."""
    left = enumerate(items)
    found: dict[int, Result] = {}

    async def work() -> None:
        for number, item in left:
            found[number] = await call(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return [found[number] for number in sorted(found)]
