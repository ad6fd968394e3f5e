"""What became of one recorded row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["passed", "failed", "D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "D9", "D10"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """``detail`` says what differs, for rows that failed."""

    case: str
    verdict: Verdict
    detail: str = ""
