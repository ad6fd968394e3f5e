"""Placement with real parts around it: Nomad's TLS, an agent of Nomad where one is installed, a registry, a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import ssl
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.registry import self_signed
from tests.doubles.web import Call, serving
from tests.host import nomad_agent
from tools import lab
from zlayer_driver.errors import NomadError
from zlayer_driver.nomad.client import Access, Nomad

PLACE = [str(Path(sys.prefix, "bin", "zlayer-driver")), "place"]


async def _no_nap(_seconds: float) -> None:
    """Tries again at once."""


async def _no_nodes(call: Call) -> None:
    call.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\nX-Nomad-Index: 1\r\n\r\n[]")
    await call.writer.drain()


@pytest.mark.needs("openssl")
async def test_a_cluster_that_asks_for_certificates_gets_ours(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    given: dict[str, Any] = {"NOMAD_CACERT": str(certificate), "NOMAD_CLIENT_CERT": str(certificate), "NOMAD_CLIENT_KEY": str(certificate)}
    async with serving(_no_nodes, context) as web:
        at = {"NOMAD_ADDR": f"https://{web.host}"}
        async with Nomad(Access.from_environment(at | given)) as nomad:
            assert (await nomad.get("/v1/nodes")).value == []
        async with Nomad(Access.from_environment(at), sleep=_no_nap) as nomad:
            with pytest.raises(NomadError, match="CERTIFICATE_VERIFY_FAILED"):
                await nomad.get("/v1/nodes")
        assert len(web.calls) == 1


@pytest.mark.needs("root", "linux", "docker-registry", "skopeo", "busybox")
def test_pull_makes_facts_of_images_of_which_nothing_is_known(tmp_path: Path) -> None:
    with lab.registry(tmp_path) as address:
        lab.oci_layout(tmp_path / "layout", "1", [lab.busybox_layer()], {}, os="windows")
        lab.push(tmp_path / "layout", "1", f"{address}/app:1")
        line = json.dumps({"id": "a", "image": f"{address}/app:1"}) + "\n"
        argv = [PLACE[0], "--state-dir", str(tmp_path / "state"), "place", "-"]
        first, second, third = (
            json.loads(subprocess.run([*argv, *more], input=line.encode(), capture_output=True, check=False).stdout)
            for more in ([], ["--pull"], [])
        )
    assert first["rule"] == "default"
    assert second["error"]["kind"] == "RouteToPeer"
    assert third == second


async def _registered(address: str, count: int) -> None:
    """Returns once Nomad has so many jobs."""
    index = 0
    async with Nomad(Access(address=address)) as nomad:
        while len((await nomad.get("/v1/jobs")).value) < count:
            index = await nomad.changed("/v1/jobs", index)


async def _starts(address: str) -> Counter[str]:
    """How often each job's task was started, over all allocations."""
    found: Counter[str] = Counter()
    async with Nomad(Access(address=address)) as nomad:
        async for alloc in nomad.pages("/v1/allocations", task_states="true"):
            events = [event["Type"] for state in alloc["TaskStates"].values() for event in state["Events"]]
            found[alloc["JobID"]] += events.count("Started")
    return found


@pytest.mark.needs("root", "linux", "nomad", "conmon", "docker-registry", "skopeo", "busybox")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_batch_that_is_interrupted_and_resumed_runs_each_job_once(tmp_path: Path, end: signal.Signals) -> None:
    jobs = 24
    with lab.registry(tmp_path) as address:
        image = f"{address}/app:1"
        lab.oci_layout(tmp_path / "layout", "1", [lab.busybox_layer()])
        lab.push(tmp_path / "layout", "1", image)
        lines = [{"id": f"j{number}", "image": image, "config": {"command": "true"}, "cpu": 50, "memory": 20} for number in range(jobs)]
        (tmp_path / "jobs.ndjson").write_text("".join(json.dumps(line) + "\n" for line in lines))
        with nomad_agent.server(tmp_path, nomad_agent.client(tmp_path, insecure_registries=[address])) as nomad:
            argv = [PLACE[0], "--state-dir", str(tmp_path / "place"), "place", "--no-caches", "--submit", str(tmp_path / "jobs.ndjson")]
            environment = {**os.environ, "NOMAD_ADDR": nomad}
            first = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            asyncio.run(_registered(nomad, jobs // 4))
            first.send_signal(end)
            assert (b"--resume" in first.communicate()[1]) is (end is signal.SIGINT)
            again = subprocess.run([*argv, "--resume", "--json"], env=environment, capture_output=True, check=False)
            assert again.returncode == 0, again
            assert asyncio.run(_starts(nomad)) == {f"jobs-j{number}": 1 for number in range(jobs)}


@pytest.mark.needs("linux")
def test_a_terminal_sees_a_bar_and_the_answers_stay_clean(tmp_path: Path) -> None:
    batch = tmp_path / "jobs.ndjson"
    batch.write_text("".join(f'{{"id": "job-{number}", "image": "app"}}\n' for number in range(50_000)))
    ours, theirs = pty.openpty()
    with (tmp_path / "out").open("wb") as out:
        argv = [*PLACE, "--no-caches", str(batch)]
        environment = {**os.environ, "TERM": "xterm", "ZLAYER_STATE_DIR": str(tmp_path / "state")}
        child = subprocess.Popen(argv, stdout=out, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    while piece := _read(ours):
        seen += piece
    os.close(ours)
    assert child.wait(30) == 0
    assert b"placing" in seen
    assert b"100%" in seen
    answers = (tmp_path / "out").read_bytes().splitlines()
    assert len(answers) == 50_000
    assert json.loads(answers[-1])["id"] == "job-49999"


def _read(fd: int) -> bytes:
    """Nothing at the end, which a terminal tells by an error."""
    try:
        return os.read(fd, 1 << 16)
    except OSError:
        return b""
