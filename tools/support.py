"""Writes the support matrix, ``docs/support.md``, from the backends and the suites that hold them to the contract: ``python -m tools.support``.

A suite is a class of ``tests/contract`` that says which ``backend`` it tries and what its ``evidence`` is: the real tools, or doubles of them.
It is named for its backend: ``TestVzLinux`` for ``vz_linux``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from zlayer_driver import contract
from zlayer_driver.backends import NAMED, TABLE
from zlayer_driver.testing.cases import AbilityCases
from zlayer_driver.testing.suite import Verbs

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "support.md"
Suite = type[Verbs]
_HEAD = """\
# Support

Made by `python -m tools.support` from the backends and from the suites that hold each of them to the contract (`tests/contract`).

* **real**: the suite ran it with the real tools, on Linux.
* **double**: the suite ran it against stand-ins of its tools, programs that check every argument and play the documented part. No machine
  with the real tools has run it.
* –: its tool has no such thing, or the backend does not use it; asking for it is an error that says so.
"""


def suites() -> dict[str, Suite]:
    """Those of backends that do work, by their backend's name, in the order of the table."""
    found = {}
    for path in sorted((ROOT / "tests/contract").glob("test_*.py")):
        module = importlib.import_module(f"tests.contract.{path.stem}")
        for suite in vars(module).values():
            if isinstance(suite, type) and issubclass(suite, Verbs) and suite.__module__ == module.__name__ and hasattr(suite, "evidence"):
                found[name_of(suite)] = suite
    return {name: found[name] for name in names() if name in found}


def names() -> Sequence[str]:
    """Of all backends of this project."""
    return [*(entry.module.rpartition(".")[2] for entry in TABLE), *NAMED]


def name_of(suite: Suite) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", suite.__name__.removeprefix("Test")).lower()


def covered(suite: Suite) -> frozenset[type]:
    """The abilities that the suite has cases for."""
    cases = (base for base in suite.__mro__ if issubclass(base, AbilityCases) and "covers" in vars(base))
    return frozenset[type]().union(*(base.covers for base in cases))


def cell(suite: Suite, ability: type) -> str:
    if ability not in contract.abilities(suite.backend):
        return "–"
    return str(suite.evidence) if ability in covered(suite) else "not tried"


def matrix() -> str:
    """The page, as Markdown."""
    return "".join([_HEAD, *_places(suites()), *_abilities(suites())])


def _places(found: Mapping[str, Suite]) -> Iterator[str]:
    yield "\n## Where each backend stands\n\n| backend | on | target | verbs | its suite |\n|---|---|---|---|---|\n"
    rows = [(name, entry.native_os, entry.target) for name, entry in zip(names(), TABLE, strict=False)]
    rows += [(name, entry.native_os, entry.target) for name, entry in NAMED.items()]
    for name, system, target in rows:
        suite = found[name]
        said = (importlib.import_module(suite.__module__).__doc__ or "").partition("\n")[0]
        yield f"| {name} | {system} | {target} | {suite.evidence} | {said} |\n"


def _abilities(found: Mapping[str, Suite]) -> Iterator[str]:
    yield f"\n## What each can do\n\n| ability | {' | '.join(found)} |\n|---|{'---|' * len(found)}\n"
    ability_names = {ability.__name__: ability for ability in contract.ABILITIES}
    rows = {name: [cell(suite, ability_names[name]) for suite in found.values()] for name in sorted(ability_names)}
    for name, cells in rows.items():
        if set(cells) != {"–"}:
            yield f"| `{name}` | {' | '.join(cells)} |\n"
    nobody = [f"`{name}`" for name, cells in rows.items() if set(cells) == {"–"}]
    yield f"\nNo backend of this version has {', '.join(nobody[:-1])} or {nobody[-1]}.\n" if len(nobody) > 1 else ""


if __name__ == "__main__":
    TARGET.write_text(matrix())
