"""The registry client against registries that misbehave."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

from tests.doubles.registry import self_signed
from tests.doubles.web import Call, Web, serving
from zlayer_driver import fastpath
from zlayer_driver.errors import PullFailed
from zlayer_driver.image import bodies, registry
from zlayer_driver.image.credentials import IDENTITY
from zlayer_driver.image.registry import Client, Repository
from zlayer_driver.image.stream import verified
from zlayer_driver.image.values import Descriptor, Limits, Malformed
from zlayer_driver.model import Auth

CONTENT = bytes(range(256)) * 8192
BLOB = Descriptor("application/vnd.oci.image.layer.v1.tar", f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", len(CONTENT))
USER = Auth("user", "secret")


class Naps:
    """Stands for waiting: remembers for how long."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)


@pytest.fixture
def naps() -> Naps:
    return Naps()


@pytest.fixture
async def client(naps: Naps) -> AsyncIterator[Client]:
    opened = Client(sleep=naps)
    yield opened
    await opened.close()


def repository(client: Client, web: Web, auth: Auth | None = None, name: str = "app:1") -> Repository:
    return Repository(client, web.host, fastpath.parse(f"{web.host}/{name}"), auth)


async def download(source: Repository) -> bytes:
    pieces = [piece async for piece in source.pieces(BLOB)]
    return b"".join(verified(pieces, BLOB))


def start(call: Call) -> int:
    """Where the range that is asked for starts."""
    return int(call.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


async def test_a_broken_download_is_resumed(client: Client, naps: Naps) -> None:
    async def cut(call: Call) -> None:
        at = start(call)
        rest = CONTENT[at:]
        ranged = {"content_range": f"bytes {at}-{len(CONTENT) - 1}/{len(CONTENT)}"} if at else {}
        await call.answer(206 if at else 200, rest[:900_000], len(rest), **ranged)

    async with serving(cut) as web:
        assert await download(repository(client, web)) == CONTENT
        assert [start(call) for call in web.calls] == sorted({start(call) for call in web.calls})
        assert len(web.calls) > 2
        assert naps.taken == [0.25] * (len(web.calls) - 1)


async def test_a_connection_that_breaks_off_is_resumed_too(client: Client, naps: Naps) -> None:
    async def broken(call: Call) -> None:
        at = start(call)
        ranged = {"content_range": f"bytes {at}-{len(CONTENT) - 1}/{len(CONTENT)}"} if at else {}
        await call.answer(206 if at else 200, CONTENT[at : at + 700_000], len(CONTENT) - at, **ranged)
        if at + 700_000 < len(CONTENT):
            call.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            call.writer.transport.abort()

    async with serving(broken) as web:
        assert await download(repository(client, web)) == CONTENT
        assert len(naps.taken) == len(web.calls) - 1 > 1


async def test_a_server_without_ranges_is_read_again_from_the_start(client: Client) -> None:
    tries = iter([900_000, len(CONTENT)])

    async def cut(call: Call) -> None:
        await call.answer(200, CONTENT[: next(tries)], len(CONTENT))

    async with serving(cut) as web:
        assert await download(repository(client, web)) == CONTENT


async def test_a_wrong_range_is_refused(client: Client) -> None:
    async def wrong(call: Call) -> None:
        if start(call):
            await call.answer(206, CONTENT, content_range=f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            await call.answer(200, CONTENT[:900_000], len(CONTENT))

    async with serving(wrong) as web:
        with pytest.raises(Malformed, match="another range"):
            await download(repository(client, web))


async def test_too_busy_is_waited_for_as_asked(client: Client, naps: Naps) -> None:
    answers = iter([(429, {"retry_after": "7"}), (503, {}), (429, {"retry_after": "100000"}), (429, {"retry_after": "soon"})])

    async def busy(call: Call) -> None:
        status, headers = next(answers, (200, {}))
        await call.answer(status, CONTENT if status == 200 else b"", None, **headers)

    async with serving(busy) as web:
        assert await download(repository(client, web)) == CONTENT
        assert naps.taken == [7.0, 0.5, 30.0, 2.0]


async def test_it_gives_up_in_the_end_and_says_that_later_may_do(client: Client) -> None:
    async def never(call: Call) -> None:
        await call.answer(503)

    async with serving(never) as web:
        with pytest.raises(PullFailed, match=r"503 .*5 attempts") as failure:
            await download(repository(client, web))
        assert failure.value.recoverable
        assert len(web.calls) == 5


async def test_a_stalled_server_is_left(client: Client, naps: Naps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "STALL_S", 0.05)

    async def stall(call: Call) -> None:
        await call.answer(200, CONTENT[:10], len(CONTENT))
        await asyncio.Event().wait()

    async with serving(stall) as web:
        with pytest.raises(PullFailed, match=r"no .* bytes in 0.05 s"):
            await download(repository(client, web))


async def test_an_endless_manifest_is_cut(client: Client) -> None:
    async def endless(call: Call) -> None:
        call.writer.write(b"HTTP/1.1 200 x\r\nconnection: close\r\n\r\n")
        while True:
            call.writer.write(bytes(100_000))
            await call.writer.drain()

    async with serving(endless) as web:
        with pytest.raises(Malformed, match="more than 1000 bytes"):
            await repository(client, web).root(Limits(manifest_bytes=1000))


async def test_a_manifest_must_be_the_one_asked_for(client: Client) -> None:
    async def other(call: Call) -> None:
        await call.answer(200, b"{}", docker_content_digest=f"sha256:{'0' * 64}")

    async with serving(other) as web:
        with pytest.raises(Malformed, match="says that the manifest is"):
            await repository(client, web).root(Limits())
        with pytest.raises(Malformed, match="says that the manifest is"):
            await repository(client, web, name=f"app@sha256:{'1' * 64}").root(Limits())


async def test_more_bytes_than_announced_are_refused() -> None:
    with pytest.raises(Malformed, match="has more than"):
        list(verified([CONTENT, b"x"], BLOB))
    with pytest.raises(Malformed, match="has less than"):
        list(verified([CONTENT[:-1]], BLOB))
    with pytest.raises(Malformed, match="content of another digest"):
        list(verified([bytes(len(CONTENT))], BLOB))


def guarded(web: list[Web], *, token: str = "t0ken") -> Callable[[Call], Awaitable[None]]:
    """A registry that sends its clients to its own ``/token``."""

    async def handle(call: Call) -> None:
        host = web[0].host
        if call.path.startswith("/token"):
            await call.answer(200, json.dumps({"token": token}).encode())
        elif call.headers.get("authorization") == "Bearer t0ken":
            await call.answer(200, CONTENT)
        else:
            await call.answer(401, www_authenticate=f'Bearer realm="http://{host}/token",service="s",scope="repository:app:pull"')

    return handle


async def test_a_token_is_fetched_once_with_the_credentials(client: Client) -> None:
    known: list[Web] = []
    async with serving(guarded(known)) as web:
        known.append(web)
        source = repository(client, web, USER)
        assert await download(source) == await download(source) == CONTENT
        tokens = [call for call in web.calls if call.path.startswith("/token")]
        assert [call.path for call in tokens] == ["/token?scope=repository%3Aapp%3Apull&service=s"]
        assert tokens[0].headers["authorization"] == f"Basic {base64.b64encode(b'user:secret').decode()}"


async def test_an_identity_token_is_posted_and_never_a_password(client: Client) -> None:
    known: list[Web] = []
    async with serving(guarded(known)) as web:
        known.append(web)
        assert await download(repository(client, web, Auth(IDENTITY, "long-lived"))) == CONTENT
        (asked,) = [call for call in web.calls if call.path.startswith("/token")]
        assert "authorization" not in asked.headers
        assert dict(parse_qsl(asked.body.decode())) == {
            "grant_type": "refresh_token",
            "client_id": "zlayer-driver",
            "refresh_token": "long-lived",
            "service": "s",
            "scope": "repository:app:pull",
        }


async def test_a_refused_token_ends_it(client: Client) -> None:
    known: list[Web] = []
    async with serving(guarded(known, token="wrong")) as web:
        known.append(web)
        with pytest.raises(PullFailed, match="refuses its own token"):
            await download(repository(client, web))


async def test_basic_authentication(client: Client) -> None:
    async def basic(call: Call) -> None:
        good = call.headers.get("authorization") == f"Basic {base64.b64encode(b'user:secret').decode()}"
        await call.answer(200 if good else 401, CONTENT if good else b"", www_authenticate='Basic realm="x"')

    async with serving(basic) as web:
        assert await download(repository(client, web, USER)) == CONTENT
        with pytest.raises(PullFailed, match=r"401.*credentials"):
            await download(repository(client, web))


async def test_credentials_do_not_follow_redirects_to_others(client: Client) -> None:
    async def store(call: Call) -> None:
        await call.answer(200, CONTENT)

    async def front(call: Call) -> None:
        if "authorization" in call.headers:
            await call.answer(307, location=f"http://{other.host}/blob")
        else:
            await call.answer(401, www_authenticate='Basic realm="x"')

    async with serving(store) as other, serving(front) as web:
        assert await download(repository(client, web, USER)) == CONTENT
        assert "authorization" not in other.calls[0].headers


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://x/", "http://x:port/"])
async def test_redirects_lead_to_http_only(client: Client, location: str) -> None:
    async def away(call: Call) -> None:
        await call.answer(307, location=location)

    async with serving(away) as web:
        with pytest.raises(PullFailed, match=r"redirects to|names a URL"):
            await download(repository(client, web))


async def test_redirects_end(client: Client) -> None:
    async def loop(call: Call) -> None:
        await call.answer(307, location="/v2/again")

    async with serving(loop) as web:
        with pytest.raises(PullFailed, match="more than 5 times"):
            await download(repository(client, web))


@pytest.mark.parametrize("realm", ["ftp://x/token", "", "file:///token"])
async def test_tokens_come_by_http_only(client: Client, realm: str) -> None:
    async def refer(call: Call) -> None:
        await call.answer(401, www_authenticate=f'Bearer realm="{realm}"')

    async with serving(refer) as web:
        with pytest.raises(PullFailed, match="not secure"):
            await download(repository(client, web, USER))


@pytest.mark.parametrize("body", [b"", b"[]", b'{"token":7}', b'{"token":"a\\nb"}', b"{" * 100_000, b"no gzip"])
async def test_a_token_that_is_none_is_refused(client: Client, body: bytes) -> None:
    async def handle(call: Call) -> None:
        if call.path.startswith("/token"):
            await call.answer(200, body, content_encoding="gzip" if body == b"no gzip" else "identity")
        else:
            await call.answer(401, www_authenticate=f'Bearer realm="http://{call.headers["host"]}/token"')

    async with serving(handle) as web:
        with pytest.raises(PullFailed, match=r"sends no|DecodingError .* attempts"):
            await download(repository(client, web))


async def test_a_registry_that_is_not_there_is_named_soon(client: Client, naps: Naps) -> None:
    async def nothing(call: Call) -> None:
        await call.answer(200)

    async with serving(nothing) as web:
        pass
    with pytest.raises(PullFailed, match=rf"ConnectError at http://{web.host}") as failure:
        await repository(client, web).root(Limits())
    assert failure.value.recoverable
    assert naps.taken == [0.25]


async def answering(status: int, content: bytes, call: Call) -> None:
    await call.answer(status, content)


async def test_mirrors_are_asked_first_and_the_registry_where_they_fail(naps: Naps) -> None:
    good, bad = partial(answering, 200, CONTENT), partial(answering, 404, b"")
    async with serving(bad) as first, serving(good) as second, serving(good) as origin:
        both = Client(mirrors={origin.host: [first.host, second.host]}, sleep=naps)
        source = await both.source(fastpath.parse(f"{origin.host}/app:1"), USER)
        assert (await source.root(Limits()))[0] == CONTENT
        assert b"".join([piece async for piece in source.pieces(BLOB)]) == CONTENT
        assert [len(web.calls) for web in (first, second, origin)] == [1, 2, 0]
        one = Client(mirrors={origin.host: [first.host]}, sleep=naps)
        source = await one.source(fastpath.parse(f"{origin.host}/app:1"), USER)
        assert b"".join([piece async for piece in source.pieces(BLOB)]) == CONTENT
        assert await source.content(BLOB) == CONTENT
        assert len(origin.calls) == 2
        await both.close()
        await one.close()


async def test_where_the_registry_fails_too_the_mirrors_are_named(naps: Naps) -> None:
    absent, denied = partial(answering, 404, b""), partial(answering, 403, b"")
    async with serving(denied) as mirror, serving(absent) as origin:
        client = Client(mirrors={origin.host: [mirror.host]}, sleep=naps)
        source = await client.source(fastpath.parse(f"{origin.host}/app:1"), None)
        with pytest.raises(PullFailed, match=f"does not have it; mirror {mirror.host}: the registry answers 403"):
            await source.root(Limits())
        await client.close()


async def test_credentials_come_from_the_auth_file(tmp_path: Path, naps: Naps) -> None:
    async def basic(call: Call) -> None:
        good = call.headers.get("authorization") == f"Basic {base64.b64encode(b'user:secret').decode()}"
        await call.answer(200 if good else 401, CONTENT, www_authenticate='Basic realm="x"')

    async with serving(basic) as web:
        auths = {web.host: {"auth": base64.b64encode(b"user:secret").decode()}}
        (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
        client = Client(auth_file=tmp_path / "config.json", sleep=naps)
        source = await client.source(fastpath.parse(f"{web.host}/app:1"), None)
        assert await source.content(BLOB) == CONTENT
        await client.close()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return self_signed(tmp_path)


@pytest.mark.needs("openssl")
async def test_certificates_are_checked_but_on_loopback(certificate: Path, naps: Naps, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with serving(partial(answering, 200, CONTENT), context) as web:
        loopback, known, unknown = Client(sleep=naps), Client(ca_file=certificate, sleep=naps), Client(sleep=naps)
        source = repository(loopback, web)
        source._scheme = "https"  # as after the 400 of a real TLS server
        assert await download(source) == CONTENT
        monkeypatch.setattr(registry, "is_loopback", lambda host: False)
        assert await download(repository(known, web)) == CONTENT
        with pytest.raises(PullFailed, match="CERTIFICATE_VERIFY_FAILED"):
            await download(repository(unknown, web))
        for client in (loopback, known, unknown):
            await client.close()


async def test_digests_of_other_kinds_are_refused(client: Client) -> None:
    async with serving(partial(answering, 200, CONTENT)) as web:
        with pytest.raises(Malformed, match="no sha256 digest"):
            await repository(client, web, name=f"app@sha512:{'0' * 128}").root(Limits())


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost", True), ("127.0.0.1:5000", True), ("127.9.9.9", True), ("localhost.evil.com", False), ("10.0.0.1:5000", False)],
)
def test_plain_http_is_for_loopback(host: str, loopback: bool) -> None:
    assert registry.is_loopback(host) is loopback
