"""Whether a pull has to ask a registry: one answer for every store of images, whoever keeps it, and one word to those who wait."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from zlayer_driver.errors import NotFound
from zlayer_driver.model import PullPolicy, PullProgress, PullSource, Report


def confined(policy: PullPolicy, source: PullSource) -> PullPolicy:
    """The policy that is left where a pull may look at some places only."""
    return PullPolicy.NEVER if source is PullSource.LOCAL_ONLY else policy


async def must_fetch(
    image: str, policy: PullPolicy, source: PullSource, is_here: Callable[[str], Awaitable[bool]], report: Report | None
) -> bool:
    """``is_here`` is asked only where that decides, ``report`` told where it is so. `NotFound` if the image is not here and may not be fetched.

    `PullPolicy.NEWER` asks the registry, as `PullPolicy.ALWAYS` does: what has not changed is not fetched anyway.
    """
    left = confined(policy, source)
    if left is PullPolicy.NEVER:
        if not await is_here(image):
            raise NotFound(image, "it is not here, and may not be fetched", hint="pull it")
        return False
    if left is PullPolicy.IF_NOT_PRESENT and await is_here(image):
        return False
    if report is not None:
        report(PullProgress(image, "download"))
    return True
