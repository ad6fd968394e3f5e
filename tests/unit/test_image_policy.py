"""Whether a pull asks a registry, and that it says so."""

from __future__ import annotations

import pytest

from zlayer_driver.errors import NotFound
from zlayer_driver.image.policy import must_fetch
from zlayer_driver.model import PullPolicy, PullProgress, PullSource

NOWHERE = None  # what is neither here nor may be fetched


@pytest.mark.parametrize(
    ("policy", "source", "if_here", "if_not"),
    [
        (PullPolicy.ALWAYS, PullSource.LOCAL_FIRST, True, True),
        (PullPolicy.NEWER, PullSource.LOCAL_FIRST, True, True),
        (PullPolicy.IF_NOT_PRESENT, PullSource.LOCAL_FIRST, False, True),
        (PullPolicy.NEVER, PullSource.LOCAL_FIRST, False, NOWHERE),
        *[(policy, PullSource.LOCAL_ONLY, False, NOWHERE) for policy in PullPolicy],
    ],
)
async def test_every_policy(policy: PullPolicy, source: PullSource, *, if_here: bool, if_not: bool | None) -> None:
    async def here(_image: str) -> bool:
        return True

    async def not_here(_image: str) -> bool:
        return False

    told: list[PullProgress] = []
    assert await must_fetch("app", policy, source, here, told.append) is if_here
    assert told == [PullProgress("app", "download")] * if_here
    if if_not is NOWHERE:
        with pytest.raises(NotFound, match="may not be fetched: pull it"):
            await must_fetch("app", policy, source, not_here, None)
    else:
        assert await must_fetch("app", policy, source, not_here, None) is if_not
