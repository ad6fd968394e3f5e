"""What the doubles of tools have in common.

They start in a moment, for tests start thousands: nothing is imported that is not needed, and state is kept as Python writes it, which JSON
that a test has written is too, but for three names.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import Any, NoReturn

    Doc = dict[str, Any]
    Verb = Callable[[list[str]], None]
else:
    Doc = dict

HOME = os.environ["DOUBLES"]
USAGE = 64
_JSON = {"__builtins__": {}, "true": True, "false": False, "null": None}


def usage(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(USAGE)


def parse(
    argv: list[str],
    *,
    flags: Collection[str] = (),
    options: Collection[str] = (),
    repeated: Collection[str] = (),
    least: int = 0,
    most: int | None = None,
    stop_at: int | None = None,
) -> tuple[Doc, list[str]]:
    """Flags, options with a value, and positional arguments: from ``least`` to ``most``, of which the ``stop_at``-th ends all options."""
    found: Doc = {name: [] for name in repeated}
    left: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0) if stop_at is None or len(left) < stop_at else "--"
        if word == "--" and (stop_at is None or len(left) == stop_at):
            left += rest
            break
        if not word.startswith("-"):
            left.append(word)
        elif word in flags:
            found[word] = True
        else:
            _take(found, word, rest, known={*options, *repeated})
    if len(left) < least or (most is not None and len(left) > most):
        usage(f"{len(left)} arguments where {least} to {most or 'any number'} are needed: {left}")
    return found, left


def _take(found: Doc, word: str, rest: list[str], *, known: Collection[str]) -> None:
    if word not in known:
        usage(f"unknown option '{word}'")
    if not rest:
        usage(f"missing value for '{word}'")
    if isinstance(earlier := found.get(word), str):
        usage(f"'{word}' is given twice, first as '{earlier}'")
    if word in found:
        found[word].append(rest.pop(0))
    else:
        found[word] = rest.pop(0)


def tell(value: object) -> None:
    """As JSON, unless it is text."""
    if not isinstance(value, str):
        import json  # noqa: PLC0415 # it takes as long to load as all else

        value = json.dumps(value)
    sys.stdout.write(f"{value}\n")


def whole(text: str, most: int = 1 << 40) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= most):
        usage(f"'{text}' is no number from 1 to {most}")
    return int(text)


def load(name: str, default: Any) -> Any:
    try:
        with open(f"{HOME}/{name}") as file:  # noqa: PTH123 # pathlib costs half of a double's start
            return eval(file.read(), dict(_JSON))
    except FileNotFoundError:
        return default


def save(name: str, value: Any) -> None:
    with open(f"{HOME}/{name}.{os.getpid()}", "w") as file:  # noqa: PTH123 # as above
        file.write(repr(value))
    os.rename(f"{HOME}/{name}.{os.getpid()}", f"{HOME}/{name}")  # noqa: PTH104 # as above


def begin(name: str) -> int:
    """What is held, and by whoever inherits it, until it is known which process something is."""
    import fcntl  # noqa: PLC0415 # few need it

    fd = os.open(f"{HOME}/begin-{name}", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def settle(name: str) -> None:
    """Returns when nothing of that name is between its beginning and being known: who began it may have been killed there."""
    import fcntl  # noqa: PLC0415 # as above

    fd = os.open(f"{HOME}/begin-{name}", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.close(fd)


def note(argv: list[str]) -> None:
    fd = os.open(f"{HOME}/calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, repr(argv).encode() + b"\n")
    os.close(fd)


def play(name: str, verbs: Mapping[str, Verb], *, version: str, version_flag: str = "--version") -> None:
    argv = sys.argv[1:]
    if argv == version_flag.split():
        tell(version)
        return
    for words in (2, 1):
        if len(argv) >= words and (verb := verbs.get(" ".join(argv[:words]))):
            note([name, *argv])
            verb(argv[words:])
            return
    usage(f"unknown command {argv[:2]}")
