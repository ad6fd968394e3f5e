"""The plugin as Nomad meets it: launch to handshake line, StartTask through gRPC, and exec.

StartTask is compared with a bare ``runc create`` and ``runc start`` of the very bundle that it made, but for the control group: each has its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from benchmarks.conftest import Versus
from tools import lab
from zlayer_driver.model import TaskRequest
from zlayer_driver.wire import goplugin
from zlayer_driver.wire.host import PluginHost

pytestmark = [pytest.mark.needs("root", "linux", "runc", "conmon", "docker-registry", "skopeo", "busybox"), pytest.mark.timeout(600)]
PLUGIN = str(Path(sys.executable).with_name("zlayer-driver"))
RUNC = shutil.which("runc") or "runc"
HANDSHAKE_LIMIT_S = 0.3
IDLE_S = 0.15  # between starts: a quiet node pays for its first cgroup migration after a pause


class Bench:
    """A running plugin on an event loop of its own, with one image pulled."""

    def __init__(self, directory: Path, image: str, stack: AsyncExitStack, runner: asyncio.Runner) -> None:
        self.directory, self.image, self.run = directory, image, runner.run
        self.count = 0
        self.host: PluginHost = self.run(self._launch(stack))

    async def _launch(self, stack: AsyncExitStack) -> PluginHost:
        host = await stack.enter_async_context(PluginHost.launch([PLUGIN]))
        await host.set_config({"state_dir": str(self.directory / "state")})
        await host.init()
        return host

    def request(self, *argv: str) -> TaskRequest:
        self.count += 1
        return TaskRequest(id=f"bench/{self.count}", name="bench", config={"image": self.image, "entrypoint": list(argv)})

    def start(self) -> TaskRequest:
        request = self.request("sleep", "1000")
        self.run(self.host.start_task(request))
        return request

    def end(self, request: TaskRequest) -> None:
        self.run(self.host.stop_task(request.id, timeout_s=0))
        self.run(self.host.destroy_task(request.id))

    def bundle(self, request: TaskRequest) -> Path:
        (config,) = (self.directory / "state").glob(f"oci/c/{request.id.replace('/', '-')}-*/config.json")
        return config.parent


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    directory = tmp_path_factory.mktemp("bench")
    lab.oci_layout(directory / "layout", "1", [lab.busybox_layer()], {"Cmd": ["sh"], "Env": ["PATH=/bin"]})
    with lab.registry(directory) as address, asyncio.Runner() as runner:
        image = f"{address}/bench/busybox:1"
        lab.push(directory / "layout", "1", image)
        stack = AsyncExitStack()
        yield Bench(directory, image, stack, runner)
        runner.run(stack.aclose())


def test_launch_to_handshake_line(versus: Versus) -> None:
    """Against a Python process that prints one line, as the floor. The limit of 300 ms is absolute, so it is told by the ratio's text."""
    environment = {**os.environ, goplugin.COOKIE_NAME: goplugin.COOKIE_VALUE}

    def first_line(argv: list[str]) -> float:
        begun = time.perf_counter()
        with subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            took = time.perf_counter() - begun
            process.terminate()
        return took

    ratio = versus(
        lambda: first_line([PLUGIN]), lambda: first_line([sys.executable, "-c", "print(1)"]), against="python -c print", rounds=15
    )
    print(f"launch to handshake line: {ratio.ours_s * 1e3:.0f} ms (limit {HANDSHAKE_LIMIT_S * 1e3:.0f} ms)")


@pytest.mark.parametrize("idle_s", [0.0, IDLE_S], ids=["back to back", "after a pause"])
def test_start_task(versus: Versus, bench: Bench, idle_s: float) -> None:
    model = bench.start()

    def start() -> float:
        request = bench.request("sleep", "1000")
        begun = time.perf_counter()
        bench.run(bench.host.start_task(request))
        took = time.perf_counter() - begun
        bench.end(request)
        return took

    versus(start, _bare(bench.bundle(model), bench.directory / "bare"), against="runc create + start", limit=1.3, rounds=25, idle_s=idle_s)
    bench.end(model)


def test_exec_round_trip(versus: Versus, bench: Bench) -> None:
    task = bench.start()
    container = bench.bundle(task).name
    state = next((bench.directory / "state" / "oci" / "rt").iterdir())
    argv = [RUNC, "--root", str(state), "exec", container, "true"]
    versus(
        lambda: bench.run(bench.host.exec_task(task.id, ["true"])),
        lambda: subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL),
        against="runc exec",
        limit=1.3,
    )
    bench.end(task)


def _bare(bundle: Path, state: Path) -> Callable[[], float]:
    count = iter(range(1 << 30))
    config = json.loads((bundle / "config.json").read_bytes())
    copy = state.with_name("bare-bundle")
    copy.mkdir(exist_ok=True)

    def start() -> float:
        name = f"bare-{next(count)}"
        config["linux"]["cgroupsPath"] = f"/bench-{os.getpid()}-{name}"
        (copy / "config.json").write_text(json.dumps(config))
        begun = time.perf_counter()
        for verb in (("create", "--bundle", str(copy), name), ("start", name)):
            subprocess.run([RUNC, "--root", str(state), *verb], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        took = time.perf_counter() - begun
        subprocess.run([RUNC, "--root", str(state), "delete", "--force", name], check=True)
        return took

    return start
