"""A client for the OCI distribution API (distribution-spec 1.1): manifests and blobs, to be trusted by digest only.

Blob downloads are resumed where they broke off. `httpx2` is imported at first use: a plugin's launch must not pay for it.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from zlayer_driver.errors import PullFailed
from zlayer_driver.image.auth import Login
from zlayer_driver.image.manifest import INDEXES, MANIFESTS
from zlayer_driver.image.stream import digest_of
from zlayer_driver.image.values import MIB, Descriptor, Limits, Malformed

if TYPE_CHECKING:
    import httpx2

    from zlayer_driver.model import Auth, Reference

Sleep = Callable[[float], Awaitable[None]]

_CHUNK = MIB // 2
_STALL_S = 30.0  # longest wait for a chunk, which makes 17 kB/s the slowest download
_ATTEMPTS = 5  # in a row without a byte of progress
_BACKOFF_S = 0.25  # doubles with each attempt
_LONGEST_WAIT_S = 30.0  # that a Retry-After may ask for
_REDIRECTS = 5
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_HOSTS = {"docker.io": "registry-1.docker.io"}


def is_loopback(registry: str) -> bool:
    host = registry.rsplit(":", 1)[0] if registry.count(":") == 1 else registry
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Client:
    """Connections to registries, shared by all pulls of a store. ``insecure`` registries are spoken to by plain HTTP, as loopback is."""

    def __init__(self, *, insecure: Collection[str] = (), sleep: Sleep = asyncio.sleep) -> None:
        self.insecure = frozenset(insecure)
        self.sleep = sleep
        self._http: httpx2.AsyncClient | None = None

    @property
    def http(self) -> httpx2.AsyncClient:
        import httpx2  # noqa: PLC0415 # at first use, see above

        if self._http is None:
            # A proxy cannot reach this machine's loopback, whatever the environment says.
            direct: dict[str, None] = dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]"))
            self._http = httpx2.AsyncClient(timeout=_STALL_S, mounts=direct, headers={"User-Agent": "zlayer-driver"})
        return self._http

    def repository(self, reference: Reference, auth: Auth | None) -> Repository:
        return Repository(self, reference, auth)

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None


class Repository:
    """One repository of a registry, and a `sources.Source` of the image that its reference names."""

    def __init__(self, client: Client, reference: Reference, auth: Auth | None) -> None:
        registry = _HOSTS.get(reference.registry, reference.registry)
        plain = registry in client.insecure or is_loopback(registry)
        self._client = client
        self._reference = reference
        self._base = f"{'http' if plain else 'https'}://{registry}/v2/{reference.repository}"
        self._login = Login(client, auth, reference.repository, plain=plain)
        self._image = f"{reference.registry}/{reference.repository}"

    async def root(self, limits: Limits) -> tuple[bytes, str]:
        """The manifest or index that the reference names, checked against the reference's digest, and its media type."""
        digest = self._reference.digest
        path = f"manifests/{digest or self._reference.tag or 'latest'}"
        headers = {"Accept": ", ".join(sorted(MANIFESTS | INDEXES))}
        raw, answer = await self._small(path, headers, limits.manifest_bytes)
        said = digest or answer.get("docker-content-digest", "")
        if said.startswith("sha256:") and said.lower() != digest_of(raw):
            raise Malformed(f"the registry says that the manifest is {said[:80]}, and sent {digest_of(raw)}")
        return raw, answer.get("content-type", "").split(";")[0].strip()

    async def content(self, blob: Descriptor) -> bytes:
        """A small blob or manifest, whole; the caller has checked its size, and checks its digest."""
        kind = "manifests" if blob.media_type in MANIFESTS | INDEXES else "blobs"
        raw, _ = await self._small(f"{kind}/{blob.digest}", {"Accept": blob.media_type}, blob.size)
        return raw

    async def pieces(self, blob: Descriptor) -> AsyncGenerator[bytes, None]:
        """A blob from its start to its end, resumed as often as there is progress; the caller checks size and digest."""
        done = failures = 0
        while done < blob.size:
            start = done
            trouble = _Transient(f"the registry ends blob {blob.digest} before its {blob.size} bytes")
            try:
                async with self._get(f"blobs/{blob.digest}", _range(done)) as answer, aclosing(_body(answer, done)) as body:
                    async for piece in body:
                        done += len(piece)
                        yield piece
            except _Transient as error:
                trouble = error
            if done < blob.size:
                failures = 1 if done > start else failures + 1
                await self._wait(trouble, failures)

    async def _small(self, path: str, headers: Mapping[str, str], limit: int) -> tuple[bytes, Mapping[str, str]]:
        failures = 0
        while True:
            try:
                async with self._get(path, headers) as answer, aclosing(_body(answer, 0)) as body:
                    raw = bytearray()
                    async for piece in body:
                        raw += piece
                        if len(raw) > limit:
                            raise Malformed(f"the registry sends more than {limit} bytes for {path}")
                    return bytes(raw), answer.headers
            except _Transient as error:
                failures += 1
                await self._wait(error, failures)

    async def _wait(self, error: _Transient, failures: int) -> None:
        if failures >= _ATTEMPTS:
            raise PullFailed(self._image, f"{error} ({failures} attempts)", recoverable=True) from error
        await self._client.sleep(error.wait_s or _BACKOFF_S * 2 ** (failures - 1))

    @asynccontextmanager
    async def _get(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        """A good answer whose body is not yet read; `_Transient` where trying again may help. Logs in where the registry asks for it."""
        import httpx2  # noqa: PLC0415

        url = f"{self._base}/{path}"
        try:
            for _ in range(2):
                async with self._follow(url, {**headers, **self._login.headers}) as answer:
                    if answer.status_code == 401 and await self._login.answer(answer):
                        continue
                    self._check(answer, path)
                    yield answer
                    return
        except httpx2.TransportError as error:
            raise _Transient(f"{type(error).__name__} at {url}: {error}") from error
        except httpx2.InvalidURL as error:
            raise PullFailed(self._image, f"the registry names a URL that is none: {error}") from error
        raise PullFailed(self._image, "the registry refuses its own token", hint="check the credentials")

    @asynccontextmanager
    async def _follow(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        """The answer after redirects. Credentials stay with the registry, and a secure connection stays secure."""
        import httpx2  # noqa: PLC0415

        at, sent = httpx2.URL(url), dict(headers)
        for _ in range(_REDIRECTS):
            async with self._client.http.stream("GET", at, headers={"Accept-Encoding": "identity", **sent}) as answer:
                if not answer.has_redirect_location:
                    yield answer
                    return
                to = at.join(answer.headers["location"])
            if to.scheme not in {"http", "https"} or (at.scheme, to.scheme) == ("https", "http"):
                raise PullFailed(self._image, f"the registry redirects to {str(to)[:200]!r}, which is not secure")
            if (to.scheme, to.host, to.port) != (at.scheme, at.host, at.port):
                sent.pop("Authorization", None)
            at = to
        raise PullFailed(self._image, f"the registry redirects more than {_REDIRECTS} times")

    def _check(self, answer: httpx2.Response, path: str) -> None:
        status = answer.status_code
        if status in {200, 206}:
            return
        if status in _TRANSIENT:
            raise _Transient(f"the registry answers {status} for {path}", _retry_after(answer.headers))
        if status in {401, 403}:
            raise PullFailed(
                self._image, f"the registry answers {status} for {path}", hint="check that the image exists and the credentials for it"
            )
        if status == 404:
            raise PullFailed(self._image, f"the registry has no {path}", hint="check the image's name and tag")
        raise PullFailed(self._image, f"the registry answers {status} for {path}")


class _Transient(Exception):
    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


def _range(done: int) -> dict[str, str]:
    return {"Range": f"bytes={done}-"} if done else {}


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds only; the header's other form, a date, gets the usual wait."""
    text = headers.get("retry-after", "")
    return min(float(text), _LONGEST_WAIT_S) if text.isdecimal() else 0.0


async def _body(answer: httpx2.Response, done: int) -> AsyncGenerator[bytes, None]:
    """The answer's bytes from ``done`` on, also where the server starts from the beginning though it was asked not to."""
    skip = done
    if answer.status_code == 206:
        if not answer.headers.get("content-range", "").startswith(f"bytes {done}-"):
            raise Malformed("the registry answers with another range than it was asked for")
        skip = 0
    async with aclosing(answer.aiter_raw(_CHUNK)) as chunks:
        while True:
            try:
                async with asyncio.timeout(_STALL_S):
                    chunk = await anext(chunks, None)
            except TimeoutError as error:
                raise _Transient(f"no {_CHUNK} bytes in {_STALL_S:g} s") from error
            if chunk is None:
                return
            piece, skip = chunk[skip:], max(0, skip - len(chunk))
            if piece:
                yield piece
