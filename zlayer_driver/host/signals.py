"""Signal names as people write them: ``SIGUSR1``, ``usr1``, ``10``, ``SIGRTMIN+3``."""

from __future__ import annotations

import re
import signal

from zlayer_driver.errors import InvalidSpec

_REALTIME = re.compile(r"RT(MIN|MAX)(?:([+-])(\d{1,2}))?")


def number(name: str) -> int:
    """The number of a signal, 1 to 64; `InvalidSpec` for anything that is none."""
    text = name.strip().upper().removeprefix("SIG")
    if text.isascii() and text.isdecimal():
        found = int(text[:4])
    elif realtime := _REALTIME.fullmatch(text):
        base = int(signal.SIGRTMIN if realtime[1] == "MIN" else signal.SIGRTMAX)
        found = base + int(f"{realtime[2] or '+'}{realtime[3] or 0}")
    else:
        found = int(signal.Signals.__members__.get(f"SIG{text}", 0))
    if not 1 <= found <= signal.SIGRTMAX:
        raise InvalidSpec(f"{name!r} is no signal", hint="use a name such as SIGTERM or a number from 1 to 64")
    return found
