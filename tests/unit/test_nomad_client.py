"""The client of Nomad's API: who asks where, pages, waiting, and what is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.nomad import FakeNomad, Refusal, fake_nomad
from zlayer_driver.errors import ConfigError, NomadError
from zlayer_driver.nomad.client import Access, Nomad, in_parallel
from zlayer_driver.nomad.fleet import ask_fleet


@pytest.fixture
def nomad() -> Iterator[FakeNomad]:
    with fake_nomad() as fake:
        yield fake


def _job(name: str) -> dict[str, Any]:
    return {"Job": {"ID": name, "Type": "batch", "TaskGroups": [{"Name": "g"}]}}


def test_the_variables_of_the_nomad_command_say_where_and_who(tmp_path: Path) -> None:
    access = Access.from_environment({"NOMAD_ADDR": "https://n:1", "NOMAD_TOKEN": "t", "NOMAD_REGION": "eu", "NOMAD_SKIP_VERIFY": "true"})
    assert (access.address, access.token, access.region, access.skip_verify) == ("https://n:1", "t", "eu", True)
    assert Access.from_environment({}).address == "http://127.0.0.1:4646"
    with pytest.raises(ConfigError, match="no http, https or unix URL"):
        Access.from_environment({"NOMAD_ADDR": "nomad:4646"})
    with pytest.raises(ConfigError, match="NOMAD_CACERT"):
        Access.from_environment({"NOMAD_ADDR": "https://n:1", "NOMAD_CACERT": str(tmp_path / "none.pem")}).tls()


async def test_token_namespace_and_region_go_with_each_call(nomad: FakeNomad) -> None:
    async with Nomad(Access(address=nomad.address, token="secret", namespace="web", region="eu", http_auth="me:pass")) as client:
        await client.get("/v1/jobs")
    _, _, query, headers = nomad.calls[0]
    assert (query["namespace"], query["region"]) == ("web", "eu")
    assert headers["X-Nomad-Token"] == "secret"
    assert headers["Authorization"].startswith("Basic ")


async def test_lists_come_whole_page_by_page(nomad: FakeNomad, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zlayer_driver.nomad.client._PER_PAGE", 2)
    nomad.nodes = [{"ID": f"n{number}", "Name": f"node-{number}"} for number in range(5)]
    async with Nomad(Access(address=nomad.address)) as client:
        assert [node["ID"] async for node in client.pages("/v1/nodes")] == ["n0", "n1", "n2", "n3", "n4"]
    assert len(nomad.calls) == 3


async def test_a_fleet_is_asked_for_what_the_list_leaves_out(nomad: FakeNomad) -> None:
    driver = {"zlayer": {"Detected": True, "Healthy": True, "Attributes": {"driver.zlayer.native_os": "linux"}}}
    nomad.nodes = [{"ID": "a", "Drivers": driver, "Attributes": {"cpu.arch": "arm64"}}, {"ID": "b", "Drivers": {}}]
    async with Nomad(Access(address=nomad.address)) as client:
        first, second = await ask_fleet(client)
    assert (first.arch, second.why_not) == ("arm64", "has no zlayer driver")
    assert [path for _, path, _, _ in nomad.calls] == ["/v1/nodes", "/v1/node/a"]


async def test_a_blocking_query_waits_for_a_change(nomad: FakeNomad) -> None:
    async with Nomad(Access(address=nomad.address)) as client:
        index = await client.changed("/v1/jobs", 0)
        waiting = asyncio.ensure_future(client.changed("/v1/jobs", index))
        await client.post("/v1/jobs", _job("a"))
        assert await waiting > index
        nomad.index = 3  # restored from a snapshot
        assert await client.changed("/v1/jobs", 2) == 3


@pytest.mark.parametrize("fault", [Refusal(503, "busy"), Refusal(500, "No cluster leader"), Refusal(429, "slow down"), Refusal(0)])
async def test_what_may_be_retried_is_retried_with_growing_pauses(nomad: FakeNomad, fault: Refusal) -> None:
    faults, pauses = [fault] * 3, list[float]()

    def before(_path: str) -> None:
        if faults:
            raise faults.pop()

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)

    nomad.before = before
    async with Nomad(Access(address=nomad.address), sleep=sleep) as client:
        await client.post("/v1/jobs", _job("a"))
    assert pauses == [0.25, 0.5, 1.0]
    assert list(nomad.jobs) == ["a"]


async def test_what_is_refused_is_not_retried_and_says_what_to_do(nomad: FakeNomad) -> None:
    def before(_path: str) -> None:
        raise Refusal(403, "Permission denied")

    nomad.before = before
    async with Nomad(Access(address=nomad.address)) as client:
        with pytest.raises(NomadError, match="403 Permission denied: does the token") as caught:
            await client.post("/v1/jobs", _job("a"))
        with pytest.raises(NomadError, match="404 job not found"):
            await client.get("/v1/job/none")
    assert not caught.value.recoverable
    assert len(nomad.calls) == 2


async def test_nobody_there_is_an_error_after_a_few_attempts(tmp_path: Path) -> None:
    pauses = list[float]()

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)

    for address in ("http://127.0.0.1:1", f"unix://{tmp_path}/none.sock"):
        async with Nomad(Access(address=address), sleep=sleep) as client:
            with pytest.raises(NomadError, match="is NOMAD_ADDR right"):
                await client.get("/v1/jobs")
    assert len(pauses) == 10


async def test_a_unix_socket_will_do(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Nomad-Index: 7\r\n\r\n[]")
        await writer.drain()
        writer.close()

    path = tmp_path / "nomad.sock"
    async with await asyncio.start_unix_server(serve, path), Nomad(Access(address=f"unix://{path}")) as client:
        assert (await client.get("/v1/jobs")).index == 7


async def test_the_first_failure_of_many_ends_the_others() -> None:
    running = 0

    async def call(number: int) -> int:
        nonlocal running
        running += 1
        try:
            if number == 3:
                raise NomadError("GET", "no")
            if number > 3:
                await asyncio.Event().wait()
            return number * 2
        finally:
            running -= 1

    assert await in_parallel(call, range(3), at_once=2) == [0, 2, 4]
    with pytest.raises(NomadError, match="no"):
        await in_parallel(call, [4, 5, 3, 6], at_once=3)
    assert running == 0
