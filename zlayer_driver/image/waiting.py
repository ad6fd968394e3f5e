"""Waiting for work that cannot be cut short, whatever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def until_done(work: asyncio.Future[Any]) -> None:
    """Waits for the end of what cannot be cut short, also when cancelled; the cancellation is raised after it."""
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            cancelled = True
    if not work.cancelled():
        work.exception()  # looked at, so that nobody is told of it again
    if cancelled:
        raise asyncio.CancelledError


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs a function to its end in a thread. A cancelled caller is told so only after it: nothing is undone while it still works."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    finally:
        await until_done(work)
