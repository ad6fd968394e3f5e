"""Running a command's work on this node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from zlayer_driver.config import PluginConfig
from zlayer_driver.node import Node

T = TypeVar("T")


def on_node(config: PluginConfig, work: Callable[[Node], Awaitable[T]]) -> T:
    """Runs ``work(node)`` in an event loop and closes the node after it."""

    async def inside() -> T:
        node = Node(config)
        try:
            return await work(node)
        finally:
            await node.close()

    return asyncio.run(inside())
