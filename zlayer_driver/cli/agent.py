"""Serving this node's own backend to a driver that cannot run containers itself, such as one on the Windows around this distro."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import click

from zlayer_driver import __version__
from zlayer_driver.backends.wsl2_agent import serve
from zlayer_driver.backends.wsl2_logs import Logged
from zlayer_driver.backends.wsl2_wire import LINE_BYTES, pack
from zlayer_driver.config import PluginConfig, parse
from zlayer_driver.model import Target
from zlayer_driver.node import Node


@click.command(hidden=True)
@click.pass_obj
def agent(config: PluginConfig) -> None:
    """Serve this node's primary backend over standard input and output."""
    asyncio.run(_serve(config.state_dir))


async def _serve(state_dir: str) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    writer.write(pack({"version": __version__}))
    if not (line := await reader.readline()):
        return
    node = Node(parse(PluginConfig, {**json.loads(line)["config"], "state_dir": state_dir}, what="config of the agent"))
    logged = Logged(node.backends[Target.PRIMARY], Path(state_dir, "logs"))
    try:
        await serve(logged, reader, writer)
    finally:
        logged.close()
        await node.close()
        writer.close()
