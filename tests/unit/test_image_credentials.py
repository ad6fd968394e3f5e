"""Credentials from a Docker config file, and by real helper programs on the PATH."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from zlayer_driver.errors import ConfigError
from zlayer_driver.image.credentials import IDENTITY, AuthFile
from zlayer_driver.model import Auth


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the PATH for helper programs."""
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", f"{path}{os.pathsep}{os.environ['PATH']}")
    return path


def helper(directory: Path, name: str, script: str) -> None:
    program = directory / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def auth_file(tmp_path: Path, document: Any) -> AuthFile:
    path = tmp_path / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return AuthFile(path)


@pytest.mark.parametrize(
    ("registry", "found"),
    [
        ("a.io", Auth("u", "p:q")),
        ("b.io", Auth("x", "y")),
        ("c.io:5000", Auth("u", "c")),
        ("docker.io", Auth("hub", "h")),
        ("none.io", None),
        ("empty.io", None),
    ],
)
async def test_inline(tmp_path: Path, registry: str, found: Auth | None) -> None:
    auths = {
        "a.io": {"auth": encoded("u:p:q")},
        "b.io": {"username": "x", "password": "y"},
        "https://c.io:5000": {"auth": encoded("u:c")},
        "https://index.docker.io/v1/": {"auth": encoded("hub:h")},
        "empty.io": {},
    }
    assert await auth_file(tmp_path, {"auths": auths}).find(registry) == found


async def test_a_file_that_is_not_there_has_nothing(tmp_path: Path) -> None:
    assert await AuthFile(tmp_path / "none.json").find("a.io") is None


async def test_helpers(tmp_path: Path, helpers: Path) -> None:
    helper(helpers, "one", 'read host; echo "{\\"Username\\":\\"u\\",\\"Secret\\":\\"for $host\\"}"')
    helper(helpers, "other", "echo credentials not found; exit 1")
    file = auth_file(tmp_path, {"credHelpers": {"a.io": "one"}, "credsStore": "other", "auths": {"b.io": {"auth": encoded("u:p")}}})
    assert await file.find("a.io") == Auth("u", "for a.io")
    assert await file.find("b.io") is None
    file = auth_file(tmp_path, {"credsStore": "one"})
    assert await file.find("docker.io") == Auth("u", "for https://index.docker.io/v1/")


@pytest.mark.parametrize("document", [{"auths": {"a.io": {"auth": encoded("u:"), "identitytoken": "x"}}}, {"credsStore": "token"}])
async def test_identity_tokens_are_told_by_their_user(tmp_path: Path, helpers: Path, document: Any) -> None:
    helper(helpers, "token", 'echo "{\\"Username\\":\\"<token>\\",\\"Secret\\":\\"x\\"}"')
    assert await auth_file(tmp_path, document).find("a.io") == Auth(IDENTITY, "x")


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("{", "cannot read credentials"),
        ({"auths": {"a.io": {"auth": "!"}}}, "are damaged"),
        ({"credHelpers": {"a.io": "missing"}}, "cannot run docker-credential-missing.*No such file"),
        ({"credHelpers": {"a.io": "text"}}, "cannot run docker-credential-text.*Exec format"),
        ({"credHelpers": {"a.io": "../../bin/sh"}}, "no name of a credential helper"),
    ],
)
async def test_faults_are_named(tmp_path: Path, helpers: Path, document: Any, reason: str) -> None:
    (helpers / "docker-credential-text").write_text("no program")
    (helpers / "docker-credential-text").chmod(0o755)
    with pytest.raises(ConfigError, match=reason):
        await auth_file(tmp_path, document).find("a.io")
