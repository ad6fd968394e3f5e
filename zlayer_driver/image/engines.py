"""Images out of a running Podman or Docker engine, as it saves them: over its unix socket, by the API that both speak.

The socket is the one that the engine's own client would use: ``DOCKER_HOST`` or ``CONTAINER_HOST`` where it is ``unix://PATH``.
API: https://docs.docker.com/reference/api/engine/version/v1.41/ (``ImageGet``).
"""

from __future__ import annotations

import os
from contextlib import aclosing
from typing import TYPE_CHECKING
from urllib.parse import quote

from zlayer_driver.errors import ConfigError, PullFailed
from zlayer_driver.image.bodies import STALL_S, Transient, pieces_from
from zlayer_driver.image.files import spool
from zlayer_driver.image.values import Limits, Malformed
from zlayer_driver.waiting import in_thread

if TYPE_CHECKING:
    import httpx2

ENGINES = {"docker-daemon": ("DOCKER_HOST", "/var/run/docker.sock"), "podman": ("CONTAINER_HOST", "/run/podman/podman.sock")}


async def saved(kind: str, image: str, limits: Limits) -> int:
    """A nameless file with the archive that ``docker save`` or ``podman save`` would write of an image; the caller closes it."""
    import httpx2  # noqa: PLC0415 # at first use: a launch must not pay for it

    socket = _socket(kind)
    transport = httpx2.AsyncHTTPTransport(uds=socket)
    try:
        async with (
            httpx2.AsyncClient(base_url="http://engine", transport=transport, trust_env=False, timeout=STALL_S) as http,
            http.stream("GET", f"/images/{quote(image, safe='/:@')}/get") as answer,
        ):
            return await _spooled(answer, f"{kind}:{image}", limits)
    except (httpx2.TransportError, Transient) as error:
        hint = f"is the engine running? Its socket can be named by {ENGINES[kind][0]}=unix://PATH"
        raise PullFailed(f"{kind}:{image}", f"{type(error).__name__} at {socket}: {error}", hint=hint, recoverable=True) from error


def _socket(kind: str) -> str:
    variable, usual = ENGINES[kind]
    host = os.environ.get(variable) or f"unix://{usual}"
    if not host.startswith("unix:///"):
        raise ConfigError(f"{variable} is {host!r}, and an image can be had only of an engine on this machine", hint="set unix://PATH")
    return host.removeprefix("unix://")


async def _spooled(answer: httpx2.Response, image: str, limits: Limits) -> int:
    """The answer's body. It may be as large as a layer may unpack to: an engine saves layers unpacked."""
    async with aclosing(pieces_from(answer, 0)) as pieces:
        if answer.status_code != 200:
            said = (await anext(pieces, b""))[:500].decode(errors="replace").strip()
            raise PullFailed(image, f"the engine answers {answer.status_code}: {said}", hint="check the image's name")
        size = 0
        with spool() as out:
            async for piece in pieces:
                size += len(piece)
                if size > limits.layer_bytes:
                    raise Malformed(f"the engine sends more than {limits.layer_bytes} bytes")
                await in_thread(out.write, piece)
            out.flush()
            return os.dup(out.fileno())
