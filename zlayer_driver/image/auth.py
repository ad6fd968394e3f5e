"""Logging in to a registry: HTTP basic authentication, and the token flows of the distribution project's auth specification.

A token is asked for by GET with a name and password, or, as its oauth.md says, by POST with an identity token (a *refresh token* there).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from zlayer_driver.errors import PullFailed
from zlayer_driver.image.credentials import IDENTITY
from zlayer_driver.image.values import MIB

if TYPE_CHECKING:
    import httpx2

    from zlayer_driver.model import Auth

_CHALLENGE = re.compile(r"\s*(basic|bearer)\b(.*)", re.IGNORECASE | re.DOTALL)
_PARAMETER = re.compile(r'(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^",\s]+))')
_TOKEN_BYTES = MIB


class Login:
    """What authenticates requests to one repository, once the registry has asked for it.

    ``http`` gives the connections to it and its token server; ``image`` is named in errors.
    """

    def __init__(self, http: Callable[[], httpx2.AsyncClient], auth: Auth | None, repository: str, image: str, *, insecure: bool) -> None:
        self.headers: dict[str, str] = {}
        self._http = http
        self._auth = auth
        self._repository = repository
        self._image = image
        self._insecure = insecure

    async def answer(self, refusal: httpx2.Response) -> bool:
        """Fills `headers` as a 401 asks; false where there is nothing to answer with."""
        for challenge in refusal.headers.get_list("www-authenticate"):
            match = _CHALLENGE.match(challenge)
            if match is None:
                continue
            if match[1].lower() == "bearer":
                parameters = {name.lower(): quoted or bare for name, quoted, bare in _PARAMETER.findall(match[2])}
                self.headers = {"Authorization": f"Bearer {await self._token(parameters)}"}
                return True
            if self._auth is not None and self._auth.username != IDENTITY:
                self.headers = {"Authorization": _basic(self._auth)}
                return True
        return False

    async def _token(self, parameters: Mapping[str, str]) -> str:
        realm = parameters.get("realm", "")
        if not realm.startswith("https://") and not (self._insecure and realm.startswith("http://")):
            raise PullFailed(self._image, f"the registry sends its clients to {realm[:200]!r} for a token, which is not secure")
        query = {"scope": f"repository:{self._repository}:pull"} | {
            key: value for key, value in parameters.items() if key in {"service", "scope"}
        }
        raw = bytearray()
        async with self._ask(realm, query) as answer:
            async for piece in answer.aiter_bytes():
                raw += piece
                if len(raw) > _TOKEN_BYTES:
                    raise PullFailed(self._image, f"the token server sends more than {_TOKEN_BYTES} bytes")
        if answer.status_code != 200:
            raise PullFailed(
                self._image,
                f"the token server answers {answer.status_code}",
                hint="check that the image exists and the credentials for it",
            )
        return self._read_token(bytes(raw))

    def _ask(self, realm: str, query: Mapping[str, str]) -> AbstractAsyncContextManager[httpx2.Response]:
        http = self._http()
        if self._auth is None:
            return http.stream("GET", realm, params=query)
        if self._auth.username == IDENTITY:
            form = {"grant_type": "refresh_token", "client_id": "zlayer-driver", "refresh_token": self._auth.password}
            return http.stream("POST", realm, data={**form, **query})
        return http.stream("GET", realm, params=query, headers={"Authorization": _basic(self._auth)})

    def _read_token(self, raw: bytes) -> str:
        try:
            doc = json.loads(raw)
            token = doc.get("token") or doc["access_token"]
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise PullFailed(self._image, "the token server sends no token") from error
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise PullFailed(self._image, "the token server sends no proper token")
        return token


def _basic(auth: Auth) -> str:
    return "Basic " + base64.b64encode(f"{auth.username}:{auth.password}".encode()).decode()
