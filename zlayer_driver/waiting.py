"""Waiting for work that cannot be cut short, whatever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger(__name__)


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


async def to_its_end(work: Awaitable[T]) -> T:
    """The result of ``work``, which goes on however often the caller is cancelled; the cancellation follows then, and a failure is logged."""
    task = asyncio.ensure_future(work)
    try:
        await until_done(task)
    except asyncio.CancelledError:
        if not task.cancelled() and (failure := task.exception()):
            _log.warning("failed while its caller was cancelled: %s", failure)
        raise
    return task.result()


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs a function to its end in a thread. A cancelled caller is told so only after it: nothing is undone while it still works."""
    return await to_its_end(asyncio.to_thread(function, *args, **kwargs))
