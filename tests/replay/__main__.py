"""``python -m tests.replay DIR [--json]``: replays every data set of DIR and prints a line a set.

Exits with 0 if every row passed or deviates as documented, 1 if any failed, 2 if a set is missing, empty or damaged.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.replay.outcome import Outcome

SETS = ("dispatch", "fallback", "pull", "lifecycle", "refs", "inspect_", "redb", "redb_corrupt")
_SHOWN = 5


@dataclass
class Tally:
    """What became of a set. ``problem`` says why it could not be replayed."""

    name: str
    passed: int = 0
    failed: int = 0
    deviates: Counter[str] = field(default_factory=Counter)
    failures: list[Outcome] = field(default_factory=list)
    problem: str = ""

    def add(self, outcome: Outcome) -> None:
        match outcome.verdict:
            case "passed":
                self.passed += 1
            case "failed":
                self.failed += 1
                self.failures += [outcome] if len(self.failures) < _SHOWN else []
            case deviation:
                self.deviates[deviation] += 1

    def __str__(self) -> str:
        if self.problem:
            return f"{self.name}: {self.problem}"
        named = ", ".join(f"{name}: {count}" for name, count in sorted(self.deviates.items()))
        line = f"{self.name}: {self.passed} passed, {self.deviates.total()} deviates{f' ({named})' if named else ''}, {self.failed} failed"
        return "\n".join([line, *(f"  {failure.case}\n    {failure.detail}" for failure in self.failures)])


def replay(root: Path, module: str) -> Tally:
    """One set, by the name of its module here."""
    data_set: Any = import_module(f"tests.replay.{module}")
    tally = Tally(data_set.NAME)
    try:
        for outcome in data_set.replay(root, rows(root / data_set.FILE)):
            tally.add(outcome)
    except (OSError, EOFError, zlib.error, json.JSONDecodeError, UnicodeDecodeError) as error:
        tally.problem = f"cannot be read: {error}"
    if not tally.problem and not tally.passed + tally.failed + tally.deviates.total():
        tally.problem = "is empty"
    return tally


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="ascii") as lines:
        yield from map(json.loads, lines)


def exit_code(tallies: Iterable[Tally]) -> int:
    found = list(tallies)
    return 1 if any(tally.failed for tally in found) else 2 if any(tally.problem for tally in found) else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.replay", description=__doc__)
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder with the data sets")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args(arguments)
    logging.getLogger("zlayer_driver").addHandler(logging.NullHandler())
    tallies = []
    for module in SETS:
        tallies.append(tally := replay(options.dir, module))
        if not options.json:
            print(tally, flush=True)  # noqa: T201  # a command's output
    if options.json:
        json.dump({tally.name: asdict(tally) for tally in tallies}, sys.stdout)
    return exit_code(tallies)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
