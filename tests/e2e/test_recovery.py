"""Plugins that are killed, at any moment, and what the next one finds."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import PLUGIN, Fifo, Site
from zlayer_driver.errors import DriverError
from zlayer_driver.model import Exit, Handle, TaskRequest
from zlayer_driver.wire.host import PluginHost

pytestmark = pytest.mark.needs("root", "linux", "runc", "conmon", "docker-registry", "skopeo", "busybox")

TASKS = 200
WORKERS = 8
KILLS = 25


@pytest.mark.parametrize("after_agent_restart", [False, True])
async def test_a_running_task_is_taken_back_and_its_logs_go_on(site: Site, *, after_agent_restart: bool) -> None:
    request = site.task("echo one; read x </local/go; echo two; exit 9")
    go = Path(request.alloc_dir, "task", "local", "go")
    out = Fifo(request.stdout_path)
    os.mkfifo(go)
    async with site.plugin() as host:
        out.open()
        handle = await host.start_task(request)
        await out.until(b"one\n")
        await host.kill()
    async with site.plugin() as host:
        await host.recover_task(handle, request, after_agent_restart=after_agent_restart)
        await host.recover_task(handle, request, after_agent_restart=after_agent_restart)
        go.write_text("go\n")
        assert await host.wait_task(request.id) == Exit(9)
        await out.ended.wait()
        await host.destroy_task(request.id)
    out.close()
    assert bytes(out.data) == b"one\ntwo\n"


async def test_a_task_that_ended_meanwhile_has_its_exit(site: Site) -> None:
    request = site.task("read x </local/go; exit 11")
    go = Path(request.alloc_dir, "task", "local", "go")
    os.mkfifo(go)
    out = Fifo(request.stdout_path)
    async with site.plugin() as host:
        out.open()
        handle = await host.start_task(request)
        await host.kill()
    await asyncio.to_thread(go.write_text, "go\n")
    await out.ended.wait()
    out.close()
    async with site.plugin() as host:
        await host.recover_task(handle, request, after_agent_restart=True)
        assert await host.wait_task(request.id) == Exit(11)
        await host.destroy_task(request.id)


async def test_what_is_gone_is_not_recovered(site: Site) -> None:
    request = site.task("exit 0")
    async with site.plugin() as host:
        handle = await host.start_task(request)
        await host.wait_task(request.id)
        await host.destroy_task(request.id)
        with pytest.raises(DriverError, match="not found"):
            await host.recover_task(handle, request)
        await host.stop_task(request.id)
        await host.destroy_task(request.id)


class Storm:
    """A client that starts tasks, and takes them back after each death of the plugin, as Nomad does."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.host: PluginHost | None = None
        self.ready = asyncio.Event()
        self.ends: dict[str, Exit] = {}
        self.chance = random.Random(11)

    async def keep_a_plugin(self, kills: int) -> None:
        """Kills the plugin at random moments, then leaves one running until it is cancelled."""
        for round_ in range(kills + 1):
            async with self.site.plugin() as host:
                self.host = host
                self.ready.set()
                if round_ == kills:
                    await asyncio.Event().wait()
                await asyncio.sleep(self.chance.uniform(0.05, 0.5))  # the random moment
                self.ready.clear()
                await host.kill()

    async def live(self, request: TaskRequest) -> None:
        """One task from start to destroy, whatever happens to the plugin in between."""
        handle: Handle | None = None
        while request.id not in self.ends:
            host = await self._plugin()
            with suppress(DriverError):
                if handle is None:
                    handle = await host.start_task(request)
                else:
                    await host.recover_task(handle, request)
                self.ends[request.id] = await host.wait_task(request.id)
        gone = False
        while not gone:
            host = await self._plugin()
            with suppress(DriverError):
                await host.destroy_task(request.id)
                gone = True

    async def _plugin(self) -> PluginHost:
        await asyncio.sleep(0)
        await self.ready.wait()
        assert self.host is not None
        return self.host


@pytest.mark.timeout(300)
async def test_a_storm_of_kills_loses_and_doubles_nothing(site: Site) -> None:
    requests = [site.task(f"echo run >> /alloc/runs; echo {n}; exit {n % 120}") for n in range(TASKS)]
    storm = Storm(site)
    waiting = iter(requests)

    async def work() -> None:
        for request in waiting:
            await storm.live(request)

    async with asyncio.TaskGroup() as group:
        plugins = group.create_task(storm.keep_a_plugin(KILLS))
        await asyncio.gather(*(group.create_task(work()) for _ in range(WORKERS)))
        plugins.cancel()
    wrong = {request.id: storm.ends[request.id] for n, request in enumerate(requests) if storm.ends[request.id] != Exit(n % 120)}
    runs = Counter(len(Path(request.alloc_dir, "alloc", "runs").read_text().splitlines()) for request in requests)
    logs = [Path(request.stdout_path).read_text() for request in requests]
    assert wrong == {}
    assert runs == {1: TASKS}
    assert logs == [f"{n}\n" for n in range(TASKS)]


async def test_three_launches_leave_nothing(site: Site) -> None:
    async with PluginHost.launch(PLUGIN) as host:
        await host.plugin_info()
    async with PluginHost.launch(PLUGIN) as host:
        await host.set_config({"state_dir": str(site.directory / "state")}, validate_only=True)
        await host.set_config({"state_dir": str(site.directory / "state")}, validate_only=True)
    assert not (site.directory / "state").exists()
