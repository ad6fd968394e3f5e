"""Holds a tool's double to its strictness: each command line of an adapter, with any one argument altered, must be refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
Free = Callable[[Sequence[str]], Collection[int]]

# The double's own `main`, a process for each command line, without the start of an interpreter for each.
_MANY = """
import importlib, json, os, sys
sys.path.insert(0, sys.argv[1])
main = importlib.import_module(f"tests.doubles.{sys.argv[2]}").main
for argv in json.load(sys.stdin):
    if (pid := os.fork()) == 0:
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(silence, stream)
        try:
            sys.argv = argv
            main()
        except SystemExit as end:
            os._exit(end.code or 0)
        except BaseException:
            os._exit(70)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Alterations:
    """Tries every command line with one argument altered, for each in turn, before the line itself is run.

    ``free`` tells the places of the task's own words, and of names that no tool can know to be others.
    """

    def __init__(self, free: Free) -> None:
        self._free = free
        self._tried: set[tuple[str, ...]] = set()
        self.refused: list[list[str]] = []
        self.accepted: list[list[str]] = []

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, whose first argument is a command line, after all alterations of it."""

        def tried(argv: Sequence[str], *args: Any, **kwargs: Any) -> Any:
            lines = [
                [*argv[:index], f"{argv[index]}x", *argv[index + 1 :]]
                for index in sorted(set(range(1, len(argv))) - set(self._free(argv)))
                if self._is_new(argv, index)
            ]
            self._try(lines, kwargs.get("env"))
            return function(argv, *args, **kwargs)

        return tried

    def _is_new(self, argv: Sequence[str], index: int) -> bool:
        kind = (*(word for word in argv[:index] if word.isalpha() or word.startswith("-")), str(index))
        found = kind not in self._tried
        self._tried.add(kind)
        return found

    def _try(self, lines: list[list[str]], env: Mapping[str, str] | None) -> None:
        if not lines:
            return
        asked = [sys.executable, "-IS", "-c", _MANY, str(_ROOT), lines[0][0].removesuffix(".exe")]
        done = subprocess.run(asked, input=json.dumps(lines).encode(), capture_output=True, env=env, timeout=20, check=True)
        for line, status in zip(lines, done.stdout.split(), strict=True):
            (self.accepted if status == b"0" else self.refused).append(line)
