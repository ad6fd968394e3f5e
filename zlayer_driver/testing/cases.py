"""What all cases of the contract share."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import ClassVar

from zlayer_driver.model import Exit, Handle
from zlayer_driver.testing.subject import Subject


class Evidence(StrEnum):
    """What a suite that passes shows: that its backend works with the real tools, or with stand-ins that play their documented part."""

    REAL = "real"
    DOUBLE = "double"


DEADLINE_S = 30.0  # nothing here takes long; a hang is a failure


async def ended(subject: Subject, handle: Handle) -> Exit:
    async with asyncio.timeout(DEADLINE_S):
        return await subject.backend.wait(handle)


class AbilityCases:
    """Cases of one ability or of several that belong together."""

    covers: ClassVar[frozenset[type]]
