"""Credentials from a Docker client's ``config.json``: inline, or by a credential helper.

Format: docker/cli «config file» (``auths``, ``credsStore``, ``credHelpers``) and the docker-credential-helpers protocol: the helper
``docker-credential-NAME get`` reads the registry's name on stdin and writes ``{"Username": …, "Secret": …}``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zlayer_driver.errors import ConfigError
from zlayer_driver.model import Auth

_HELPER = re.compile(r"[A-Za-z0-9._-]{1,100}")
_HELPER_TIMEOUT_S = 30.0
_MAX_BYTES = 1 << 20
_DOCKER_HUB = "https://index.docker.io/v1/"  # the key of docker.io
_MAKE = "log in again by `docker login` or `podman login`"
_MEND = "install it, or correct credsStore or credHelpers"
IDENTITY = "<token>"  # the user name that marks a password as an identity token, in helpers' answers and in `Auth` here


class AuthFile:
    """A ``config.json``, read anew at each question: people change it by logging in."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def find(self, registry: str) -> Auth | None:
        """Credentials for a registry; `ConfigError` if the file or its helper does not work."""
        document = self._read()
        key = _DOCKER_HUB if registry == "docker.io" else registry
        helper = _mapping(document, "credHelpers").get(registry) or document.get("credsStore")
        if isinstance(helper, str) and helper:
            return await self._ask(helper, key)
        auths = _mapping(document, "auths")
        entry = next((auths[name] for name in (key, registry, f"https://{registry}") if name in auths), None)
        return self._inline(entry, registry) if isinstance(entry, dict) else None

    def _read(self) -> Mapping[str, Any]:
        try:
            with self._path.open("rb") as file:
                document = json.loads(file.read(_MAX_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"cannot read credentials in {str(self._path)!r}: {error}", hint=_MAKE) from error
        return document if isinstance(document, dict) else {}

    def _inline(self, entry: Mapping[str, Any], registry: str) -> Auth | None:
        if entry.get("identitytoken"):
            return Auth(IDENTITY, str(entry["identitytoken"]))
        if not entry.get("auth"):
            user, password = entry.get("username"), entry.get("password")
            return Auth(user, password) if isinstance(user, str) and isinstance(password, str) else None
        try:
            user, colon, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        except (binascii.Error, ValueError, TypeError) as error:
            raise ConfigError(f"the credentials for {registry} in {str(self._path)!r} are damaged", hint=_MAKE) from error
        return Auth(user, password.rstrip("\0")) if colon else None

    async def _ask(self, helper: str, key: str) -> Auth | None:
        """What a helper has; a helper that ends badly has nothing for this registry."""
        if not _HELPER.fullmatch(helper):
            raise ConfigError(f"{helper!r} in {str(self._path)!r} is no name of a credential helper", hint=_MEND)
        program = f"docker-credential-{helper}"
        try:
            child = await asyncio.create_subprocess_exec(
                program, "get", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
            )
        except OSError as error:
            raise ConfigError(f"cannot run {program}, which {str(self._path)!r} names: {error.strerror}", hint=_MEND) from error
        try:
            async with asyncio.timeout(_HELPER_TIMEOUT_S):
                answer, _ = await child.communicate(key.encode())
        except TimeoutError as error:
            raise ConfigError(f"{program} took longer than {_HELPER_TIMEOUT_S:g} s", hint="see whether it waits for a terminal") from error
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        return _answered(answer) if child.returncode == 0 else None


def _answered(answer: bytes) -> Auth | None:
    try:
        document = json.loads(answer)
        user, secret = document["Username"], document["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return Auth(user, secret) if isinstance(user, str) and isinstance(secret, str) else None


def _mapping(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}
