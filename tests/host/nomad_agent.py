"""A real Nomad server of one, on loopback; with this driver on a client, if it is to run jobs."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zlayer_driver.host import mounts


def _ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def client(root: Path, **config: object) -> dict[str, Any]:
    """What makes a server a client too, whose driver is this one with ``config``."""
    plugins = root / "plugins"
    plugins.mkdir()
    (plugins / "zlayer-driver").symlink_to(Path(sys.prefix, "bin", "zlayer-driver"))
    denied = "consul,vault,env_aws,env_gce,env_azure,env_digitalocean"
    options = {"driver.allowlist": "zlayer", "fingerprint.denylist": denied}
    return {
        "plugin_dir": str(plugins),
        "client": {"enabled": True, "network_interface": "lo", "cpu_total_compute": 100_000, "options": options},
        "plugin": [{"zlayer-driver": {"config": {"state_dir": str(root / "state"), **config}}}],
    }


@contextmanager
def server(root: Path, more: Mapping[str, Any] | None = None) -> Iterator[str]:
    """The address of its API, once variables can be written; ``more`` is for its configuration."""
    http, rpc, serf = _ports(3)
    config = {
        "data_dir": str(root / "data"),
        "bind_addr": "127.0.0.1",
        "advertise": dict.fromkeys(("http", "rpc", "serf"), "127.0.0.1"),
        "ports": {"http": http, "rpc": rpc, "serf": serf},
        "server": {"enabled": True, "bootstrap_expect": 1},
        "disable_update_check": True,
        "log_level": "INFO",
        **(more or {}),
    }
    (root / "agent.json").write_text(json.dumps(config))
    env = {key: value for key, value in os.environ.items() if not key.startswith(("NOMAD_", "AWS_"))}
    argv = ["nomad", "agent", f"-config={root}/agent.json"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, text=True) as agent:
        assert agent.stdout
        said = []
        for line in agent.stdout:
            said.append(line)
            if "initialized keyring" in line:
                break
        else:
            raise AssertionError(f"the agent ended: {''.join(said)}")
        reader = threading.Thread(target=agent.stdout.read)
        reader.start()
        try:
            yield f"http://127.0.0.1:{http}"
        finally:
            agent.terminate()
            reader.join()
            _unmount_below(root)


def _unmount_below(root: Path) -> None:
    """An agent that ends keeps the directories of its allocations mounted for the next one."""
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for where in reversed([path for path in mounted if path.startswith(f"{root}/")]):
        mounts.unmount(Path(where))


async def empty(address: str, variable: str) -> None:
    """Deletes a variable."""
    host, _, port = address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"DELETE /v1/var/{variable} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert b" 20" in await reader.readline()
    await reader.read()
    writer.close()
    await writer.wait_closed()
