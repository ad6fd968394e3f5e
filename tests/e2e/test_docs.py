"""What the pages tell people to type and to write into jobs, done: every command line, every job, every plugin block."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.nomad import fake_nomad
from tests.e2e.conftest import Registry, Site
from tests.host import nomad_agent
from tests.host.oci_lab import remains
from tools import lab
from zlayer_driver.cli.agent_config import fold, parse_hcl, read
from zlayer_driver.config import PluginConfig, TaskConfig, parse
from zlayer_driver.model import Exit, Resources, TaskRequest, TaskState
from zlayer_driver.nomad.client import Access, Nomad

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", *ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/*/README.md")])
IMAGE = "docker.io/library/busybox:1.36"
ELSEWHERE = {
    "apt-get": "the packages are those of tools/setup, which has run",
    "mkdir": "so has the kernel of guests been unpacked",
    "dpkg-deb": "likewise",
    "python3": "this environment is one",
    "/opt/zlayer/bin/pip": "this program is installed",
    "ln": "and in the path",
    "make": "its targets run this test, or are run by hand",
    "nomad": "see test_the_first_hour",
    "systemctl": "likewise",
}
LOGS, SERVED = "nomad alloc logs -stderr -job web", "response:200"
LOGGED_WITHIN_S = 30.0  # Nomad reads a task's output by a process of its own
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.needs("root", "linux", "runc", "conmon", "docker-registry", "skopeo", "busybox")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    text: str


BLOCKS = [Block(page.name, *found.groups()) for page in PAGES for found in FENCE.finditer(page.read_text(encoding="utf-8"))]
AGENTS = [block for block in BLOCKS if block.language == "hcl" and re.search(r"^plugin ", block.text, re.MULTILINE)]
JOBS = [block for block in BLOCKS if block.language == "hcl" and block not in AGENTS]


def commands(page: str, program: str = "") -> list[str]:
    """The lines of a page that begin with a prompt: those of one program, or all but those that run elsewhere."""
    lines = [line for block in BLOCKS if block.language == "console" and block.page == page for line in block.text.splitlines()]
    return [line[2:] for line in lines if line.startswith("$ ") and _is(line.split()[1], program)]


def _is(name: str, program: str) -> bool:
    return name == program if program else name not in ELSEWHERE


@pytest.fixture
def busybox(registry: Registry, tmp_path: Path) -> str:
    """The registry that stands in for Docker's: it has the image that the pages speak of."""
    lab.oci_layout(tmp_path / "layout", "1", [lab.busybox_layer()], {"Cmd": ["sh"], "Env": ["PATH=/bin"]})
    lab.push(tmp_path / "layout", "1", f"{registry.address}/library/busybox:1.36")
    return registry.address


@pytest.fixture
def environment(site: Site, busybox: str) -> Iterator[Mapping[str, str]]:
    """A shell's, on a node whose agent is configured as the pages say; images come from `busybox`, and Nomad is a double."""
    agent = site.directory / "nomad.d"
    agent.mkdir()
    config = f'state_dir = "{site.directory}/state"\n    registry_mirrors = {{ "docker.io" = "{busybox}" }}'
    (agent / "zlayer.hcl").write_text(f'plugin "zlayer-driver" {{\n  config {{\n    {config}\n  }}\n}}\n')
    with fake_nomad() as nomad:
        path = f"{Path(sys.prefix, 'bin')}{os.pathsep}{os.environ['PATH']}"
        yield {**os.environ, "PATH": path, "ZLAYER_CONFIG": str(agent), "NOMAD_ADDR": nomad.address}


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if commands(block.page)}))
def test_commands(page: str, environment: Mapping[str, str], site: Site) -> None:
    places = {"/etc/nomad.d": f"{site.directory}/nomad.d", "/opt/nomad/plugins": f"{site.directory}/plugins"}
    work = site.directory / "work"
    work.mkdir()
    for line in commands(page):
        for written, here in places.items():
            line = line.replace(written, here)  # noqa: PLW2901  # the same line, in this test's own directories
        done = subprocess.run(
            ["sh", "-c", line], env=environment, cwd=work, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"{page}: {line}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


@pytest.mark.parametrize("block", AGENTS, ids=lambda block: block.page)
def test_plugin_blocks(block: Block, tmp_path: Path) -> None:
    (tmp_path / "agent.hcl").write_text(block.text)
    parse(PluginConfig, read(tmp_path / "agent.hcl").config, what=block.page)


@pytest.mark.parametrize("block", JOBS, ids=lambda block: block.page)
async def test_jobs(block: Block, site: Site, busybox: str) -> None:
    """Each task of each job, as Nomad would hand it over; a service is stopped once it runs."""
    for job in _bodies(_whole(parse_hcl(block.text))["job"]):
        for task in (task for group in _bodies(job["group"]) for task in _bodies(group["task"])):
            config = fold(TaskConfig, task["config"][0])
            config["args"] = [_free_port() if arg == "8080" else arg for arg in config.get("args", [])]
            parse(TaskConfig, config, what=block.page)
            if "constraint" not in job:
                await _run(site, busybox, _request(site, config, task), job.get("type", "service"))


@pytest.mark.needs("nomad")
@pytest.mark.timeout(300)
def test_the_first_hour(tmp_path: Path, busybox: str) -> None:
    """What the pages ask of Nomad, asked of a real agent whose driver is this one."""
    (job,) = (block.text for block in JOBS if block.page == "first-job.md" and block.text.startswith('job "web"'))
    port = _free_port()
    (tmp_path / "web.nomad.hcl").write_text(job.replace("8080", port))
    with nomad_agent.server(tmp_path, nomad_agent.client(tmp_path, registry_mirrors={"docker.io": busybox})) as address:
        asyncio.run(_until(address, "/v1/nodes", lambda found: any(node["Drivers"].get("zlayer", {}).get("Healthy") for node in found)))
        try:
            lines = [line for page in ("install.md", "first-job.md") for line in commands(page, "nomad")]
            told = {line: _nomad(address, line.replace("8080", port), tmp_path) for line in lines}
            until = time.monotonic() + LOGGED_WITHIN_S
            while SERVED not in told[LOGS] and time.monotonic() < until:
                told[LOGS] = _nomad(address, LOGS, tmp_path)
        finally:
            _nomad(address, "nomad job stop web", tmp_path)
            asyncio.run(_until(address, "/v1/allocations", lambda found: all(alloc["ClientStatus"] == "complete" for alloc in found)))
    assert "driver.zlayer.native_os" in told["nomad node status -self -verbose"]
    assert told["nomad alloc exec -job web wget -qO- http://127.0.0.1:8080/"] == "hello"
    assert SERVED in told[LOGS]
    assert remains(tmp_path) == []


def _nomad(address: str, line: str, work: Path) -> str:
    done = subprocess.run(
        line.split(),
        env={**os.environ, "NOMAD_ADDR": address},
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{line}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


async def _until(address: str, path: str, holds: Callable[[Sequence[Mapping[str, Any]]], bool]) -> None:
    """Returns once what Nomad lists at ``path`` is as wanted."""
    async with Nomad(Access(address=address)) as nomad:
        index = 0
        while not holds((await nomad.get(path)).value):
            index = await nomad.changed(path, index)


def _whole(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where a page shows only a group or a task, the job around it."""
    for inner, outer in (("task", "group"), ("group", "job")):
        if inner in part and outer not in part:
            part = {outer: [{"part": {inner: part[inner], "constraint": []}}]}
    return part


def _free_port() -> str:
    """In place of a page's port, which something on this machine may have."""
    with socket.socket() as trial:
        trial.bind(("", 0))
        return str(trial.getsockname()[1])


def _bodies(blocks: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Of labelled blocks, what they hold."""
    return (body for block in blocks for body in block.values())


def _request(site: Site, config: Mapping[str, Any], task: Mapping[str, Any]) -> TaskRequest:
    request = site.task("")
    for template in task.get("template", []):
        Path(request.alloc_dir, "task", template["destination"]).write_text(template["data"])
    memory_mb = next((resources["memory"] for resources in task.get("resources", [])), 64)
    return replace(request, config=config, resources=Resources(memory_bytes=memory_mb << 20, cpu_shares=100))


async def _run(site: Site, registry: str, request: TaskRequest, kind: str) -> None:
    async with site.plugin(registry_mirrors=[{"docker.io": registry}], allow_oci_runtimes=["runc"]) as host:
        await host.start_task(request)
        if kind == "service":
            assert (await host.inspect_task(request.id)).state is TaskState.RUNNING
            await host.stop_task(request.id, timeout_s=1)
        else:
            assert await host.wait_task(request.id) == Exit(0)
        await host.destroy_task(request.id)
