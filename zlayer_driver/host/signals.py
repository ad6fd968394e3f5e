"""Signal names as people write them: ``SIGUSR1``, ``usr1``, ``10``, ``SIGRTMIN+3``."""

from __future__ import annotations

import re
import signal

from zlayer_driver.errors import InvalidSpec

_LAST = max(signal.valid_signals())
_REALTIME = re.compile(r"RT(MIN|MAX)(?:([+-])(\d{1,2}))?")


def number(name: str) -> int:
    """The number of a signal; `InvalidSpec` for anything that is none."""
    text = name.strip().upper().removeprefix("SIG")
    if text.isascii() and text.isdecimal():
        found = int(text[:4])
    elif realtime := _REALTIME.fullmatch(text):
        base = int(getattr(signal, f"SIGRT{realtime[1]}", _LAST))  # macOS has none
        found = base + int(f"{realtime[2] or '+'}{realtime[3] or 0}")
    else:
        found = int(signal.Signals.__members__.get(f"SIG{text}", 0))
    if not 1 <= found <= _LAST:
        raise InvalidSpec(f"{name!r} is no signal", hint=f"use a name such as SIGTERM or a number from 1 to {_LAST}")
    return found
