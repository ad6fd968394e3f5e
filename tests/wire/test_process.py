"""A real plugin process, launched as Nomad does: the handshake, its descriptors and signals, and every way in which it may end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket as sockets
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from zlayer_driver.errors import DriverError
from zlayer_driver.model import Exit, Handle, TaskRequest, TaskState
from zlayer_driver.wire import launch, socket
from zlayer_driver.wire.goplugin import COOKIE_NAME, COOKIE_VALUE
from zlayer_driver.wire.host import PluginHost

PLUGIN = [sys.executable, "-m", "tests.doubles.scripted_driver"]
ROOT = Path(__file__).parents[2]
ID = "6b1e2d0e-30f4-4b0c-9d7c-55b3a2f0c001/web/1a2b3c4d"


@pytest.fixture
def env(socket_dir: Path) -> dict[str, str]:
    return {"TMPDIR": str(socket_dir), "PYTHONPATH": str(ROOT)}


@pytest.fixture
async def host(env: dict[str, str]) -> AsyncIterator[PluginHost]:
    async with PluginHost.launch(PLUGIN, env=env) as launched:
        yield launched


def request(image: str, task_id: str = ID) -> TaskRequest:
    return TaskRequest(id=task_id, name="web", config={"image": image}, alloc_id=task_id.split("/", maxsplit=1)[0])


async def test_a_whole_life_of_a_plugin(host: PluginHost, socket_dir: Path) -> None:
    assert await host.plugin_info() == ("zlayer", "0.1.0")
    await host.set_config({"state_dir": "/srv/z", "fallback": ["delegate"]}, validate_only=True)
    await host.set_config({"state_dir": "/srv/z", "fallback": ["delegate"]})
    await host.init()
    fingerprint = await anext(host.fingerprints())
    assert fingerprint.attributes == {"driver.zlayer.version": "0.1.0", "driver.zlayer.targets": 4, "driver.zlayer.kvm": False}
    handle = await host.start_task(request("hold"))
    event = await anext(host.events())
    assert (event.task_id, event.message) == (ID, "Downloading image hold")
    await host.recover_task(handle, request("hold"))
    assert (await host.inspect_task(ID)).state is TaskState.RUNNING
    result = await host.exec_task(ID, ["echo", "x"], timeout_s=2.5)
    assert (result.exit, result.stdout, result.stderr) == (Exit(3), b"echo x", b"2.5")
    await host.signal_task(ID, "SIGHUP")
    await host.stop_task(ID)
    assert await host.wait_task(ID) == Exit(143, 15)
    assert (await host.inspect_task(ID)).exit == Exit(143, 15)
    await host.destroy_task(ID)
    with pytest.raises(DriverError, match="no such task"):
        await host.wait_task(ID)
    assert await host.stop()
    assert list(socket_dir.iterdir()) == []


async def test_the_socket_is_its_owners_alone(host: PluginHost) -> None:
    mode = Path(host.address).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert mode & 0o077 == 0


async def test_the_socket_is_shared_with_the_group_that_the_host_names(env: dict[str, str], socket_dir: Path) -> None:
    directory = socket_dir / "own"
    directory.mkdir()
    shared = {**env, "PLUGIN_UNIX_SOCKET_DIR": str(directory), "PLUGIN_UNIX_SOCKET_GROUP": str(os.getgid())}
    async with PluginHost.launch(PLUGIN, env=shared) as host:
        path = Path(host.address)
        assert path.parent == directory
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert path.stat().st_gid == os.getgid()


async def test_log_lines_reach_the_agent(host: PluginHost) -> None:
    await host.init()
    with pytest.raises(DriverError, match="cannot be run"):
        await host.start_task(request("fail:spec"))
    await host.stop()
    said = [(line["@level"], line["@message"]) for line in host.logs]
    assert ("info", "ready") in said
    assert ("info", "request refused") in said


def held_by(pid: int) -> Iterator[str]:
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the process opens and closes files of its own meanwhile
            yield str(fd.readlink())


async def test_no_child_holds_the_plugins_pipes(host: PluginHost) -> None:
    """Else the agent would not notice the plugin's death until the child ends."""
    handle = await host.start_task(request("child"))
    (child,) = handle.data["children"]
    try:
        assert [str(Path(f"/proc/{child}/fd/{fd}").readlink()) for fd in range(3)] == [os.devnull] * 3
        assert not [what for what in held_by(child) if what.startswith(("pipe:", "socket:"))]
        await host.kill()
        async with asyncio.timeout(5):
            await host.exited()
    finally:
        os.kill(child, signal.SIGKILL)


async def test_children_take_signals_as_usual(host: PluginHost) -> None:
    handle = await host.start_task(request("child"))
    (child,) = handle.data["children"]
    status = Path(f"/proc/{child}/status").read_text(encoding="ascii")
    os.kill(child, signal.SIGKILL)
    (ignored,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn:"))
    assert [number for number in signal.valid_signals() if ignored >> (number - 1) & 1] == []


async def test_ctrl_c_in_the_agents_terminal_does_not_reach_the_plugin(host: PluginHost) -> None:
    await host.start_task(request("hold"))
    os.kill(host.pid, signal.SIGINT)
    assert (await host.inspect_task(ID)).state is TaskState.RUNNING


async def test_sigterm_ends_the_plugin(host: PluginHost, socket_dir: Path) -> None:
    os.kill(host.pid, signal.SIGTERM)
    async with asyncio.timeout(launch.START_TIMEOUT_S):
        assert await host.exited() == 0
    assert list(socket_dir.iterdir()) == []


async def test_open_calls_do_not_hold_the_exit_and_are_cut_not_answered(host: PluginHost) -> None:
    """An answer to WaitTask would be taken for the exit of a task that runs on."""
    await host.start_task(request("hold"))
    waiting = [asyncio.create_task(host.wait_task(ID)) for _ in range(20)]
    streams = [asyncio.ensure_future(anext(host.events())), asyncio.ensure_future(anext(host.fingerprints()))]
    await host.inspect_task(ID)
    assert await host.stop()
    for ended in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(ended, DriverError)
        assert ended.recoverable
    await asyncio.gather(*streams, return_exceptions=True)


async def starting(host: PluginHost, image: str) -> asyncio.Task[Handle]:
    """A start that the plugin is at work on."""
    begun = asyncio.create_task(host.start_task(request(image)))
    await anext(host.events())
    return begun


async def test_a_start_that_is_under_way_is_undone_before_the_exit(host: PluginHost, socket_dir: Path) -> None:
    begun = await starting(host, f"undo:{socket_dir}/undone")
    assert await host.stop()
    assert (socket_dir / "undone").exists()
    assert isinstance((await asyncio.gather(begun, return_exceptions=True))[0], DriverError)


async def test_a_thread_that_hangs_does_not_hold_the_exit(host: PluginHost, socket_dir: Path) -> None:
    begun = await starting(host, "stuck")
    assert await host.stop()
    assert list(socket_dir.iterdir()) == []
    await asyncio.gather(begun, return_exceptions=True)


async def test_a_killed_plugin_is_replaced_and_recovers(env: dict[str, str], socket_dir: Path) -> None:
    async with PluginHost.launch(PLUGIN, env=env) as first:
        handle = await first.start_task(request("exit:7"))
        await first.kill()
        with pytest.raises(DriverError, match="does not answer") as caught:
            await first.wait_task(ID)
        assert caught.value.recoverable
    assert len(list(socket_dir.iterdir())) == 1
    async with PluginHost.launch(PLUGIN, env=env) as second:
        await second.init()
        assert [path.name for path in socket_dir.iterdir()] == [Path(second.address).name]
        await second.recover_task(Handle.loads(handle.dumps()), request("exit:7"), after_agent_restart=True)
        assert await second.wait_task(ID) == Exit(7)


LEAVE = """
import asyncio, sys
from tests.wire.test_process import PLUGIN, request
from zlayer_driver.wire.host import PluginHost

async def main():
    async with PluginHost.launch(PLUGIN) as host:
        await host.init()
        await host.start_task(request("hold"))
        print(host.address, host.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_plugin_outlives_the_agents_crash_and_is_reattached(env: dict[str, str], socket_dir: Path) -> None:
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", LEAVE, stdout=subprocess.PIPE, env={**os.environ, **env})
    assert agent.stdout is not None
    address, pid = (await agent.stdout.readline()).decode().split()
    agent.kill()
    await agent.wait()
    async with PluginHost.attach(address, int(pid)) as host:
        assert await host.plugin_info() == ("zlayer", "0.1.0")
        await host.init()  # writes to a log that nobody reads any more
        assert (await host.inspect_task(ID)).state is TaskState.RUNNING
        await host.stop_task(ID)
        assert await host.wait_task(ID) == Exit(143, 15)
    assert list(socket_dir.iterdir()) == []


async def test_a_program_that_is_no_plugin_says_so(env: dict[str, str]) -> None:
    with pytest.raises(DriverError, match=r"no plugin of this protocol.*no such luck"):
        async with PluginHost.launch(["sh", "-c", "echo no such luck >&2; echo hello"], env=env):
            pytest.fail("it is no plugin")


@pytest.mark.parametrize(("directory", "says"), [("d" * 100, "shorter directory"), ("nowhere", "may write to")])
async def test_a_socket_that_cannot_be_is_said_in_one_line(env: dict[str, str], socket_dir: Path, directory: str, says: str) -> None:
    argv = ["sh", "-c", f"PLUGIN_UNIX_SOCKET_DIR=/{directory} exec {' '.join(PLUGIN)} 2>{socket_dir}/log"]
    with pytest.raises(DriverError, match="no plugin"):
        async with PluginHost.launch(argv, env=env):
            pytest.fail("it cannot start")
    (line,) = (socket_dir / "log").read_text(encoding="utf-8").splitlines()
    entry = json.loads(line)
    assert entry["@level"] == "error"
    assert says in entry["error"]


def test_only_dead_plugins_sockets_are_swept(socket_dir: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = {
        "gone": f"zlayer-plugin-{dead.pid}-a.sock",
        "served": f"zlayer-plugin-{dead.pid}-b.sock",
        "alive": f"zlayer-plugin-{os.getpid()}-c.sock",
    }
    with sockets.socket(sockets.AF_UNIX) as gone, sockets.socket(sockets.AF_UNIX) as served, sockets.socket(sockets.AF_UNIX) as alive:
        for name, sock in (("gone", gone), ("served", served), ("alive", alive)):
            sock.bind(str(socket_dir / names[name]))
        served.listen()
        (socket_dir / "zlayer-plugin-x-y.sock").touch()
        (socket_dir / f"zlayer-plugin-{dead.pid}-file.sock").touch()
        (socket_dir / f"zlayer-plugin-{1 << 70}-x.sock").touch()
        socket.sweep(socket_dir)
    assert not (socket_dir / names["gone"]).exists()
    assert len(list(socket_dir.iterdir())) == 5


def test_nothing_heavy_is_imported_before_the_handshake(env: dict[str, str]) -> None:
    """Python's own import log goes to descriptor 2, which the plugin lets go of just before it announces itself."""
    command = [sys.executable, "-c", "from zlayer_driver.cli.main import entry; entry()"]
    own = {**os.environ, **env, COOKIE_NAME: COOKIE_VALUE, "PYTHONPROFILEIMPORTTIME": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=own, text=True) as plugin:
        assert plugin.stdout is not None
        assert plugin.stdout.readline().startswith("1|2|unix|/")
        plugin.terminate()
        _, log = plugin.communicate()
    imported = {line.rsplit("|", 1)[1].strip() for line in log.splitlines() if line.startswith("import time:")}
    assert "zlayer_driver.wire.goplugin" in imported
    heavy = {"pydantic", "click", "rich", "httpx2", "pyroute2", "msgpack", "sqlite3"}
    assert {name.split(".")[0] for name in imported} & heavy == set()
    assert "zlayer_driver.driver" not in imported
