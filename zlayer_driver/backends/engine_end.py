"""The end of an engine's container and of its output: seen, asked for, and forced. A log that nobody reads must not keep it back."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from signal import SIGKILL
from typing import Final

from zlayer_driver.backends.engine_container import Container
from zlayer_driver.backends.engine_output import Output
from zlayer_driver.errors import TimedOut
from zlayer_driver.model import Exit

_DRAIN_S: Final = 2.0
_KILL_S: Final = 30.0


async def wait(container: Container, output: Output) -> Exit:
    """Returns when its output is in the logs too, where somebody reads them."""
    end = await container.end()
    await output.drained(_DRAIN_S)
    return end


async def stop(container: Container, output: Output, *, number: int, timeout_s: float) -> None:
    """Asks for the end by a signal, and forces it after ``timeout_s``."""
    with suppress(TimeoutError):
        await container.send(number)
        async with asyncio.timeout(timeout_s):
            await wait(container, output)
        return
    await _kill(container, output)


async def _kill(container: Container, output: Output) -> None:
    """Podman answers when it has seen the end, for which all output must have found its way: where that might not, the follower goes."""
    sending = asyncio.ensure_future(container.send(SIGKILL))
    try:
        await asyncio.wait({sending}, timeout=_DRAIN_S)
        if not sending.done():
            await output.end()
        await sending
    finally:
        sending.cancel()
    for patience_s in (_DRAIN_S, _KILL_S):
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await wait(container, output)
            return
        await output.end()
    raise TimedOut(f"the end of task {container.task_id!r} after SIGKILL", _KILL_S)
