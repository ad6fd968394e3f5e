"""Stand-ins for tools that do not run on Linux: executables in `BIN` that check every argument and play the tool's documented part.

Each keeps its state under ``$DOUBLES``, exits with 64 and the argument's name where it does not know one, and notes each call it
understood in ``$DOUBLES/calls``. What they have in common is in `tests.doubles.double`.
"""

from __future__ import annotations

import ast
from pathlib import Path

BIN = Path(__file__).with_name("bin")


def calls(home: Path) -> list[list[str]]:
    """The command lines so far, the tool's name first, oldest first."""
    log = home / "calls"
    return [ast.literal_eval(line) for line in log.read_text().splitlines()] if log.exists() else []
