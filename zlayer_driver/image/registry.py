"""A client for the OCI distribution API (distribution-spec 1.1): manifests and blobs, to be trusted by digest only.

Blob downloads are resumed where they broke off. `httpx2` is imported at first use: a plugin's launch must not pay for it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from zlayer_driver.errors import ConfigError, PullFailed
from zlayer_driver.image.auth import Login
from zlayer_driver.image.bodies import STALL_S, Transient, pieces_from
from zlayer_driver.image.credentials import AuthFile
from zlayer_driver.image.manifest import INDEXES, MANIFESTS
from zlayer_driver.image.stream import digest_of
from zlayer_driver.image.values import Descriptor, Limits, Malformed, Source, check_digest

if TYPE_CHECKING:
    import httpx2

    from zlayer_driver.model import Auth, Reference

Sleep = Callable[[float], Awaitable[None]]

_ATTEMPTS = 5  # in a row without a byte of progress
_ATTEMPTS_AT_FIRST = 2  # with a registry that has never answered: most likely it is not there, and people wait to be told so
_BACKOFF_S = 0.25  # doubles with each attempt
_LONGEST_WAIT_S = 30.0  # that a Retry-After may ask for
_REDIRECTS = 5
_TURNS = 3  # of one request: to find that the server speaks HTTPS, to be asked for a token, to be answered
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_CA = "set registry_ca_file to a file of certificates in PEM"
_TLS = "if it speaks plain HTTP, list it in insecure_registries; if its certificate is not the system's to trust, set registry_ca_file"
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
    """Connections to registries, shared by all pulls of a store.

    ``insecure`` registries, and those on loopback, are spoken to by plain HTTP, or by HTTPS with any certificate if that is what they speak.
    ``mirrors`` are hosts to ask before a registry; ``ca_file`` holds certificates to trust besides the system's.
    """

    def __init__(
        self,
        *,
        insecure: Collection[str] = (),
        mirrors: Mapping[str, Sequence[str]] | None = None,
        auth_file: Path | None = None,
        ca_file: Path | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.sleep = sleep
        self._insecure = frozenset(insecure)
        self._mirrors = mirrors or {}
        self._credentials = None if auth_file is None else AuthFile(auth_file)
        self._ca_file = ca_file
        self._http: dict[bool, httpx2.AsyncClient] = {}

    def is_insecure(self, host: str) -> bool:
        return host in self._insecure or is_loopback(host)

    def http(self, *, insecure: bool) -> httpx2.AsyncClient:
        import httpx2  # noqa: PLC0415 # at first use, see above

        if insecure not in self._http:
            # A proxy cannot reach this machine's loopback, whatever the environment says.
            direct: dict[str, None] = dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]"))
            headers = {"User-Agent": "zlayer-driver"}
            verify = False if insecure else self._trusted()
            self._http[insecure] = httpx2.AsyncClient(timeout=STALL_S, mounts=direct, headers=headers, verify=verify)
        return self._http[insecure]

    async def source(self, reference: Reference, auth: Auth | None) -> Source:
        """Where to pull ``reference`` from. ``auth`` is for its own registry only; else the auth file is asked."""
        mirrors = self._mirrors.get(reference.registry, ())
        sources = [Repository(self, mirror, reference, await self._known(mirror)) for mirror in mirrors]
        origin = _HOSTS.get(reference.registry, reference.registry)
        own = Repository(self, origin, reference, auth or await self._known(reference.registry))
        return Mirrored([*sources, own], mirrors) if sources else own

    async def close(self) -> None:
        while self._http:
            await self._http.popitem()[1].aclose()

    async def _known(self, registry: str) -> Auth | None:
        return None if self._credentials is None else await self._credentials.find(registry)

    def _trusted(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if self._ca_file is not None:
            try:
                context.load_verify_locations(self._ca_file)
            except OSError as error:  # what `ssl` raises is one too
                raise ConfigError(f"cannot use the certificates in {str(self._ca_file)!r}: {error}", hint=_CA) from error
        return context


class Mirrored:
    """Sources of one image, asked in order: the next one only where the one before fails with a `PullFailed`."""

    def __init__(self, sources: Sequence[Source], mirrors: Sequence[str]) -> None:
        """``mirrors`` are the names of all sources but the last, which is the registry itself."""
        self._sources = list(sources)
        self._mirrors = mirrors

    async def root(self, limits: Limits) -> tuple[bytes, str]:
        told = []
        for mirror in self._mirrors:
            try:
                return await self._sources[0].root(limits)
            except PullFailed as error:
                told.append(f"mirror {mirror}: {error.reason}")
                del self._sources[0]  # what it does not know now it will not know later
        try:
            return await self._sources[0].root(limits)
        except PullFailed as error:
            raise PullFailed(error.image, "; ".join([error.reason, *told]), hint=error.hint, recoverable=error.recoverable) from error

    async def content(self, blob: Descriptor) -> bytes:
        for source in self._sources[:-1]:
            with suppress(PullFailed):
                return await source.content(blob)
        return await self._sources[-1].content(blob)

    async def pieces(self, blob: Descriptor) -> AsyncGenerator[bytes, None]:
        for source in self._sources:
            started = False
            try:
                async with aclosing(source.pieces(blob)) as pieces:
                    async for piece in pieces:
                        started = True
                        yield piece
            except PullFailed:
                if started or source is self._sources[-1]:
                    raise
            else:
                return


class Repository:
    """One repository on one host, as the `Source` of the image that a reference names."""

    def __init__(self, client: Client, host: str, reference: Reference, auth: Auth | None) -> None:
        self._sleep = client.sleep
        self._reference = reference
        self._insecure = client.is_insecure(host)
        self._scheme = "http" if self._insecure else "https"
        self._path = f"{host}/v2/{reference.repository}"
        self._image = _named(reference)
        self._http = partial(client.http, insecure=self._insecure)
        self._login = Login(self._http, auth, reference.repository, self._image, insecure=self._insecure)
        self._answered = False

    async def root(self, limits: Limits) -> tuple[bytes, str]:
        """The manifest or index that the reference names, checked against the reference's digest, and its media type."""
        digest = (self._reference.digest or "").lower()
        if digest:
            check_digest(digest)
        path = f"manifests/{digest or self._reference.tag or 'latest'}"
        headers = {"Accept": ", ".join(sorted(MANIFESTS | INDEXES))}
        raw, answer = await self._small(path, headers, limits.manifest_bytes)
        said = digest or answer.get("docker-content-digest", "")
        if said.startswith("sha256:") and said != digest_of(raw):
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
            trouble = Transient(f"the registry ends blob {blob.digest} before its {blob.size} bytes")
            try:
                async with self._get(f"blobs/{blob.digest}", _range(done)) as answer, aclosing(pieces_from(answer, done)) as body:
                    async for piece in body:
                        done += len(piece)
                        yield piece
            except Transient as error:
                trouble = error
            if done < blob.size:
                failures = 1 if done > start else failures + 1
                await self._wait(trouble, failures)

    async def _small(self, path: str, headers: Mapping[str, str], limit: int) -> tuple[bytes, Mapping[str, str]]:
        failures = 0
        while True:
            try:
                async with self._get(path, headers) as answer, aclosing(pieces_from(answer, 0)) as body:
                    raw = bytearray()
                    async for piece in body:
                        raw += piece
                        if len(raw) > limit:
                            raise Malformed(f"the registry sends more than {limit} bytes for {path}")
                    return bytes(raw), answer.headers
            except Transient as error:
                failures += 1
                await self._wait(error, failures)

    async def _wait(self, error: Transient, failures: int) -> None:
        if failures >= (_ATTEMPTS if self._answered else _ATTEMPTS_AT_FIRST):
            hint = _TLS if "SSL" in str(error) else "see that the registry is up, and that this node reaches it"
            raise PullFailed(self._image, f"{error} ({failures} attempts)", hint=hint, recoverable=True) from error
        await self._sleep(error.wait_s or _BACKOFF_S * 2 ** (failures - 1))

    @asynccontextmanager
    async def _get(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        """A good answer whose body is not yet read; `Transient` where trying again may help. Logs in where the registry asks for it."""
        import httpx2  # noqa: PLC0415  # at the first pull: a launch must not pay for it

        try:
            for _ in range(_TURNS):
                async with self._follow(f"{self._scheme}://{self._path}/{path}", {**headers, **self._login.headers}) as answer:
                    self._answered = True
                    if await self._prefers_https(answer) or (answer.status_code == 401 and await self._login.answer(answer)):
                        continue
                    self._check(answer, path)
                    yield answer
                    return
        except httpx2.RequestError as error:
            raise Transient(f"{type(error).__name__} at {self._scheme}://{self._path}: {error}") from error
        except httpx2.InvalidURL as error:
            raise PullFailed(self._image, f"the registry names a URL that is none: {error}") from error
        raise PullFailed(self._image, "the registry refuses its own token", hint="check the credentials")

    async def _prefers_https(self, answer: httpx2.Response) -> bool:
        """Whether this is how a TLS server answers plain HTTP, which every kind says in words; from then on it gets what it wants."""
        if self._scheme == "https" or answer.status_code != 400:
            return False
        async with aclosing(answer.aiter_raw()) as body:
            said = await anext(body, b"")
        if b"HTTPS" in said:
            self._scheme = "https"
        return self._scheme == "https"

    @asynccontextmanager
    async def _follow(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        """The answer after redirects. Credentials stay with the registry, and a secure connection stays secure."""
        import httpx2  # noqa: PLC0415  # at the first pull: a launch must not pay for it

        at, sent = httpx2.URL(url), dict(headers)
        for _ in range(_REDIRECTS):
            async with self._http().stream("GET", at, headers={"Accept-Encoding": "identity", **sent}) as answer:
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
            raise Transient(f"the registry answers {status} for {path}", _retry_after(answer.headers))
        if status in {401, 403}:
            raise PullFailed(
                self._image, f"the registry answers {status} for {path}", hint="check that the image exists and the credentials for it"
            )
        if status == 404:
            if path.startswith("manifests/"):
                raise PullFailed(self._image, "the registry does not have it", hint="check its name and tag")
            raise PullFailed(self._image, f"the registry has no {path}", hint="push the image again")
        raise PullFailed(self._image, f"the registry answers {status} for {path}")


def _named(reference: Reference) -> str:
    """A reference as people write it, with its tag or digest."""
    tag = f":{reference.tag}" if reference.tag else ""
    digest = f"@{reference.digest}" if reference.digest else ""
    return f"{reference.registry}/{reference.repository}{tag}{digest}"


def _range(done: int) -> dict[str, str]:
    return {"Range": f"bytes={done}-"} if done else {}


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds only; the header's other form, a date, gets the usual wait."""
    text = headers.get("retry-after", "")
    return min(float(text), _LONGEST_WAIT_S) if text.isdecimal() else 0.0
