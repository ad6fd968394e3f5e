"""``make run``: one task the whole way, and a batch of ten thousand, on real parts; ends with one table of what happened.

The plugin is launched as Nomad launches it, and the client is the package's own embedded host.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from tools import lab
from zlayer_driver.model import Exit, Resources, TaskRequest
from zlayer_driver.wire.host import PluginHost

ROOT = Path(__file__).parents[1]
JOB = ROOT / "examples" / "demo.json"
PROGRAM = Path(sys.executable).with_name("zlayer-driver")
BATCH = 10_000
TICKER = b"""#!/bin/sh
trap 'echo hangup again' HUP
trap 'echo told to stop >&2; exit 3' TERM
echo "$GREETING"
echo "ready" >&2
while :; do sleep "$2" & wait $!; done
"""
T = TypeVar("T")


class Story:
    """What happened, and how long each step took."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rows: list[tuple[str, str, float]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Times the block; what it appends to the list is what happened."""
        told: list[str] = []
        begun = time.perf_counter()
        with self.console.status(f"{name} …"):
            yield told
        self.rows.append((name, " ".join(told), time.perf_counter() - begun))
        if not self.console.is_terminal:
            print(f"{name}: {' '.join(told)}", flush=True)

    def table(self) -> Table:
        table = Table(
            title="zlayer-driver: one task the whole way, and a batch", title_justify="left", header_style="bold", box=box.SIMPLE_HEAD
        )
        table.add_column("step")
        table.add_column("what happened", overflow="fold")
        table.add_column("time", justify="right")
        for name, told, seconds in self.rows:
            table.add_row(name, told, f"{seconds * 1000:,.1f} ms")
        return table


def missing() -> list[str]:
    """One line for each thing that this machine lacks for the whole way."""
    lacks = []
    if sys.platform != "linux":
        lacks.append(f"containers: this is {sys.platform}; the OCI backend runs on Linux")
    elif os.geteuid() != 0:
        lacks.append("containers: not root; run `sudo make run`")
    lacks += [f"{tool}: not installed" for tool in ("conmon", "docker-registry", "busybox", "skopeo") if not shutil.which(tool)]
    if not any(map(shutil.which, ("crun", "runc", "youki"))):
        lacks.append("crun, runc or youki: none is installed")
    return lacks


def task_request(registry: str, logs: Path, run: str) -> TaskRequest:
    """The task of the job file, as Nomad would hand it over."""
    job = json.loads(JOB.read_text().replace("${registry}", registry))["Job"]
    group = job["TaskGroups"][0]
    task = group["Tasks"][0]
    return TaskRequest(
        id=f"{job['ID']}/{task['Name']}/{run}",
        name=task["Name"],
        config=task["Config"],
        env=task["Env"],
        resources=Resources(cpu_shares=task["Resources"]["CPU"], memory_bytes=task["Resources"]["MemoryMB"] << 20),
        stdout_path=str(logs / "stdout.fifo"),
        stderr_path=str(logs / "stderr.fifo"),
        job_id=job["ID"],
        job_name=job["ID"],
        group_name=group["Name"],
    )


class Log:
    """Nomad's side of a log FIFO: reads lines until the last writer is gone."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path, 0o600)
        self._reader = asyncio.StreamReader()
        self._path = path

    async def open(self) -> None:
        pipe = os.fdopen(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(self._reader), pipe)

    async def line(self) -> str:
        return (await within(self._reader.readline())).decode().rstrip("\n")

    async def rest(self) -> str:
        return (await within(self._reader.read())).decode()


async def within(wanted: Awaitable[T]) -> T:
    async with asyncio.timeout(30):
        return await wanted


async def one_task(story: Story, registry: str, directory: Path) -> None:
    async with AsyncExitStack() as stack:
        with story.step("launch the plugin") as told:
            host = await stack.enter_async_context(PluginHost.launch([str(PROGRAM)]))
            told.append("cookie, handshake line, gRPC on a unix socket")
        with story.step("configure") as told:
            name, version = await host.plugin_info()
            await host.set_config({"state_dir": str(directory / "state")})
            await host.init()
            found = await anext(host.fingerprints())
            told.append(f"{name} {version}, {found.health}: {found.description}")
        await life(story, host, registry, directory)
        with story.step("shut the plugin down") as told:
            told.append("it went by itself" if await host.stop() else "it had to be killed")


async def life(story: Story, host: PluginHost, registry: str, directory: Path) -> None:
    request = task_request(registry, directory, "0001")
    out, err = Log(Path(request.stdout_path)), Log(Path(request.stderr_path))
    await out.open()
    await err.open()
    with story.step("start: pull, choose, create, start") as told:
        handle = await host.start_task(request)
        told.append(f"{request.config['image']} on {handle.target} ({handle.backend})")
    with story.step("logs") as told:
        told.append(f"stdout {await out.line()!r}, stderr {await err.line()!r}")
    with story.step("exec") as told:
        done = await host.exec_task(request.id, ["sh", "-c", "cat /proc/1/comm; exit 5"])
        told.append(f"in the container of {done.stdout.decode().strip()!r}, exit code {done.exit.code}")
    with story.step("signal") as told:
        await host.signal_task(request.id, "SIGHUP")
        told.append(f"SIGHUP, answered {await out.line()!r}")
    waiting = asyncio.create_task(host.wait_task(request.id))
    with story.step("stop") as told:
        await host.stop_task(request.id, timeout_s=5, signal="SIGTERM")
        told.append(f"SIGTERM, answered {(await err.rest()).strip()!r}")
    with story.step("exit") as told:
        told.append(exit_text(await within(waiting)))
    with story.step("destroy") as told:
        await host.destroy_task(request.id)
        told.append("container, mounts, cgroups and files are gone")
    with story.step("start again, image here") as told:
        again = await host.start_task(quiet(request, "0002", ["true"]))
        told.append(f"on {again.target}, {exit_text(await within(host.wait_task(again.task_id)))}")
        await host.destroy_task(again.task_id)


def quiet(request: TaskRequest, run: str, argv: list[str]) -> TaskRequest:
    """The same task with another command and no logs."""
    config = {**request.config, "entrypoint": argv, "args": []}
    return TaskRequest(id=f"{request.id[:-4]}{run}", name=request.name, config=config, resources=request.resources)


def exit_text(ended: Exit) -> str:
    return (
        f"exit code {ended.code}" + (f", signal {ended.signal}" if ended.signal else "") + (", out of memory" if ended.oom_killed else "")
    )


def batch(story: Story, registry: str, directory: Path) -> None:
    jobs = directory / "jobs.ndjson"
    chosen = random.Random(7)
    images = [
        f"{registry}/demo/ticker:1",
        "docker.io/library/alpine:3",
        "quay.io/team/app@sha256:" + "0" * 64,
        "mcr.example/windows/nano:1",
    ]
    wishes: list[dict[str, Any]] = [
        {},
        {},
        {},
        {"platform": {"os": "linux"}},
        {"platform": {"os": "windows"}},
        {"runtime": "vm"},
        {"runtime": "sandbox"},
    ]
    with jobs.open("w") as file:
        for number in range(BATCH):
            file.write(json.dumps({"id": f"job-{number}", "image": chosen.choice(images), **chosen.choice(wishes)}) + "\n")
    with story.step(f"place {BATCH:,} jobs") as told:
        argv = [str(PROGRAM), "--state-dir", str(directory / "state"), "place", "--summary", "--json", str(jobs)]
        result = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if result.returncode not in {0, 3}:
            raise RuntimeError(f"place ended with {result.returncode}: {result.stderr}")
        told.append("; ".join(f"{row['jobs']:,} {row['target']} by {row['rule']}" for row in json.loads(result.stdout)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, metavar="SVG", help="write the table as a picture too")
    picture = parser.parse_args().picture
    console = Console(record=picture is not None, width=None if sys.stdout.isatty() and not picture else 120)
    story = Story(console)
    with tempfile.TemporaryDirectory(prefix="zlayer-demo-") as temporary:
        directory = Path(temporary)
        if lacks := missing():
            print("\n".join(f"make run: {line}" for line in lacks))
            batch(story, "127.0.0.1:5000", directory)
        else:
            whole_way(story, directory)
    console.print(story.table())
    if picture:
        console.save_svg(str(picture), title="make run")


def whole_way(story: Story, directory: Path) -> None:
    with ExitStack() as stack:
        with story.step("start a registry") as told:
            registry = stack.enter_context(lab.registry(directory))
            told.append(registry)
        with story.step("make and push an image") as told:
            layers = [lab.busybox_layer(), lab.files_layer({"bin/ticker": TICKER})]
            lab.oci_layout(directory / "image", "1", layers, {"Entrypoint": ["/bin/ticker"], "Cmd": ["--every", "5"]})
            lab.push(directory / "image", "1", f"{registry}/demo/ticker:1")
            told.append(f"busybox and a script, {sum(map(len, layers)) / 1e6:.1f} MB in 2 layers")
        asyncio.run(one_task(story, registry, directory))
        batch(story, registry, directory)


if __name__ == "__main__":
    main()
