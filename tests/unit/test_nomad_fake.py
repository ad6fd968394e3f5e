"""The fake Nomad answers as the real one did."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.doubles.nomad import FakeNomad, fake_nomad

EXCHANGES = json.loads((Path(__file__).parents[1] / "data" / "nomad" / "exchanges.json").read_text())
EXACT = {"Status", "Summary", "ParameterizedJob"}


def _ask(nomad: FakeNomad, method: str, path: str, body: Any) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection(urlsplit(nomad.address).netloc, timeout=10)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        raw = answer.read().decode()
        headers = dict(answer.getheaders())
        return answer.status, headers, json.loads(raw) if headers["Content-Type"] == "application/json" else raw
    finally:
        connection.close()


def _is_like(fake: Any, real: Any) -> bool:
    """Whether all that the fake says has the form of the real thing, which may say more."""
    if isinstance(fake, dict) and isinstance(real, dict):
        return all(key in real and (value == real[key] if key in EXACT else _is_like(value, real[key])) for key, value in fake.items())
    if isinstance(fake, list) and isinstance(real, list):
        return len(fake) == len(real) and all(map(_is_like, fake, real))
    return type(fake) is type(real)


def test_the_fake_answers_as_the_recorded_agent() -> None:
    with fake_nomad() as nomad:
        nomad.nodes = EXCHANGES[0]["body"]
        token = ""
        for exchange in EXCHANGES:
            asked = exchange["request"]
            path, given, _ = asked["path"].partition("next_token=")
            status, headers, body = _ask(nomad, asked["method"], path + (given and given + token), asked["body"])
            token = headers.get("X-Nomad-Nexttoken", "")
            assert status == exchange["status"], asked
            assert bool(token) == ("X-Nomad-Nexttoken" in exchange["headers"]), asked
            kept = body if asked["path"] != "/v1/job/rec-worker" else {key: body[key] for key in exchange["body"]}
            assert kept == exchange["body"] if isinstance(exchange["body"], str) else _is_like(kept, exchange["body"]), (asked, kept)
