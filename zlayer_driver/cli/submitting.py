"""``zlayer-driver place --submit`` and ``--dry-run``: a batch as Nomad jobs, and its way through Nomad."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from zlayer_driver.cli.output import Failure, Row, show_rows
from zlayer_driver.errors import DriverError
from zlayer_driver.nomad.client import Access, Nomad
from zlayer_driver.nomad.jobs import Work
from zlayer_driver.nomad.journal import Entry, Journal
from zlayer_driver.nomad.placement import Answer
from zlayer_driver.nomad.submit import COMPLETE, Progress, Submission, dispatches_of, entries_of

_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a batch is submitted: ``pack`` lines to a Nomad job, or each as a dispatch of the parameterised job ``parent``."""

    batch: str
    journal: Path
    pack: int = 1
    parent: str = ""
    resume: bool = False


def batch_name(given: str | None, file: str) -> str:
    """The batch's name: what was given, else that of its file."""
    name = given or re.sub(r"[^A-Za-z0-9._-]+", "-", Path(file).stem)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise click.UsageError(f"{name!r} is no name for a batch: give one by --batch, of at most 64 letters, digits, '.', '_' and '-'")
    return name


def dry_run(found: Iterable[Work | Answer], manner: Manner) -> bool:
    """Prints what would be sent, a line each: Nomad jobs as ``nomad job plan -json`` takes them. Whether all lines were good."""
    bad: list[Answer] = []
    works = _good(found, bad)
    entries = asyncio.run(_dispatches(works, manner)) if manner.parent else entries_of(manner.batch, works, pack=manner.pack)
    for entry in entries:
        click.echo(json.dumps(entry.body if manner.parent else {"Job": entry.body["Job"]}))
    return not _told(bad)


def submit(found: Iterable[Work | Answer], manner: Manner, *, as_json: bool) -> bool:
    """Submits and follows; prints a table of how the lines ended. Whether all are complete."""
    bad: list[Answer] = []
    with Journal.open(manner.journal, resume=manner.resume) as journal:
        known = journal.planned()
        works = (work for work in _good(found, bad) if work.line.id not in known)
        try:
            outcomes, refusals = asyncio.run(_submit(works, manner, journal))
        except KeyboardInterrupt:
            interrupted = DriverError(f"batch {manner.batch!r} was interrupted", hint="the same command with --resume goes on with it")
            raise Failure(interrupted, as_json=as_json) from None
    _told(bad)
    _show(outcomes, refusals, as_json=as_json)
    return not bad and all(outcome == COMPLETE for outcome in outcomes.values())


async def _submit(works: Iterable[Work], manner: Manner, journal: Journal) -> tuple[Mapping[str, str], Mapping[str, str]]:
    entries = await _dispatches(works, manner) if manner.parent else entries_of(manner.batch, works, pack=manner.pack)
    journal.plan(entries)
    async with Nomad(Access.from_environment(os.environ)) as nomad:
        submission = Submission(nomad, journal)
        with _bar() as ended:
            outcomes = await submission.run(ended)
    return outcomes, {name: str(error) for name, error in submission.refused.items()}


async def _dispatches(works: Iterable[Work], manner: Manner) -> list[Entry]:
    async with Nomad(Access.from_environment(os.environ)) as nomad:
        parent = (await nomad.get(f"/v1/job/{manner.parent}")).value
    return list(dispatches_of(manner.batch, works, parent))


def _good(found: Iterable[Work | Answer], bad: list[Answer]) -> Iterator[Work]:
    for one in found:
        if isinstance(one, Work):
            yield one
        else:
            bad.append(one)


def _told(bad: Iterable[Answer]) -> bool:
    """Says what is wrong with lines, on standard error, one JSON object each; whether there were any."""
    lines = [json.dumps(answer) for answer in bad]
    for line in lines:
        click.echo(line, err=True)
    return bool(lines)


def _show(outcomes: Mapping[str, str], refusals: Mapping[str, str], *, as_json: bool) -> None:
    if as_json:
        rows = [{"id": name, "outcome": outcome, "error": refusals.get(name)} for name, outcome in outcomes.items()]
        show_rows(rows, as_json=True)
        return
    counts = Counter(outcomes.values())
    names = {outcome: [name for name, how in outcomes.items() if how == outcome] for outcome in counts}
    table: list[Row] = [{"outcome": outcome, "jobs": count, "which": _some(names[outcome])} for outcome, count in sorted(counts.items())]
    show_rows(table, as_json=False, title="Batch")
    for name, why in refusals.items():
        click.echo(f"{name}: {why}", err=True)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")


@contextmanager
def _bar() -> Iterator[Progress]:
    """A bar of the lines that ended on a terminal, and silence elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _ended, _total: None
        return
    from zlayer_driver.cli.terminal import bars  # noqa: PLC0415  # see there

    with bars("count", "elapsed") as progress:
        bar = progress.add_task("ended", total=None)
        yield lambda ended, total: progress.update(bar, completed=ended, total=total)
