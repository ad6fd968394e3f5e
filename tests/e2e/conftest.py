"""A registry with a few images, and what a Nomad client has around one task."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.host.oci_lab import remains
from tools import lab
from zlayer_driver.model import Resources, TaskRequest
from zlayer_driver.wire.host import PluginHost

PLUGIN = [sys.executable, "-c", "from zlayer_driver.cli.main import entry; import sys; sys.argv = ['zlayer-driver']; entry()"]


@dataclass(frozen=True)
class Registry:
    """``plain`` is busybox with no entrypoint; ``stopper`` has STOPSIGNAL SIGUSR1."""

    address: str
    plain: str
    stopper: str


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    directory = tmp_path_factory.mktemp("registry")
    layer = lab.busybox_layer()
    with lab.registry(directory) as address:
        images = {}
        configs: dict[str, dict[str, Any]] = {"plain": {}, "stopper": {"StopSignal": "SIGUSR1"}}
        for name, config in configs.items():
            layout = directory / name
            lab.oci_layout(layout, "1", [layer], {"Cmd": ["sh"], "Env": ["PATH=/bin"], **config})
            images[name] = f"{address}/e2e/{name}:1"
            lab.push(layout, "1", images[name])
        yield Registry(address, **images)


class Site:
    """A state directory, an allocation directory, and task ids; nothing of a task may be left in it at the end."""

    def __init__(self, directory: Path, sockets: Path, registry: Registry) -> None:
        self.directory = directory
        self.sockets = sockets
        self.registry = registry
        self._count = 0

    @asynccontextmanager
    async def plugin(self, **config: Any) -> AsyncIterator[PluginHost]:
        """A running, configured plugin."""
        async with PluginHost.launch(PLUGIN) as host:
            await host.set_config({"state_dir": str(self.directory / "state"), **config})
            await host.init()
            yield host

    def task(self, script: str, *, image: str = "", **changes: Any) -> TaskRequest:
        """A task that runs a shell script, with an allocation directory as Nomad makes it and logs to two files."""
        self._count += 1
        alloc = self.directory / f"alloc-{self._count}"
        for part in ("alloc", "task/local", "task/secrets"):
            (alloc / part).mkdir(parents=True, exist_ok=True)
        request = TaskRequest(
            id=f"{alloc.name}/task/{self._count:08x}",
            name="task",
            config={"image": image or self.registry.plain, "command": "sh", "args": ["-c", script]},
            resources=Resources(memory_bytes=64 << 20, cpu_shares=100),
            alloc_dir=str(alloc),
            alloc_id=alloc.name,
            job_name="job",
            stdout_path=str(alloc / "stdout"),
            stderr_path=str(alloc / "stderr"),
        )
        for path in (request.stdout_path, request.stderr_path):
            Path(path).touch()
        return replace(request, **changes)


@pytest.fixture
def site(tmp_path: Path, socket_dir: Path, registry: Registry) -> Iterator[Site]:
    yield Site(tmp_path, socket_dir, registry)
    assert remains(tmp_path) == []


class Fifo:
    """Nomad's end of a log FIFO; what came is in ``data``, and ``ended`` is set when the last writer is gone."""

    def __init__(self, path: str) -> None:
        Path(path).unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
        self.data = bytearray()
        self.ended = asyncio.Event()
        self._path = path
        self._came = asyncio.Event()
        self._fd = -1

    def open(self) -> None:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(20):
            while text not in self.data:
                self._came.clear()
                await self._came.wait()

    def _readable(self) -> None:
        try:
            chunk = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return
        self.data += chunk
        self._came.set()
        if not chunk:
            asyncio.get_running_loop().remove_reader(self._fd)
            self.ended.set()
