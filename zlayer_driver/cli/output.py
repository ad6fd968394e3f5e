"""How answers reach a person or a program: a table on a terminal, plain lines in a pipe, JSON where asked for."""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import click

from zlayer_driver.errors import DriverError
from zlayer_driver.model import PullProgress, Report

_CURES = {
    errno.EACCES: "run it as root",
    errno.EPERM: "run it as root",
    errno.EROFS: "set state_dir to a directory that can be written to",
    errno.ENOSPC: "make room there, by `zlayer-driver prune` or otherwise",
}
Command = TypeVar("Command", bound=Callable[..., Any])
Row = Mapping[str, Any]


class Failure(click.ClickException):
    """A `DriverError` as the command line shows it: one line, or one JSON object."""

    def __init__(self, error: DriverError, *, as_json: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.as_json = as_json

    def show(self, file: Any = None) -> None:
        if self.as_json:
            with suppress(OSError):  # it may be standard output that is in trouble
                click.echo(json.dumps({"error": describe(self.error)}))
                return
        click.echo(f"zlayer-driver: {self.format_message()}", err=True, file=file)


def describe(error: DriverError) -> dict[str, Any]:
    """An error as data: kind, message, whether a retry helps, and its own fields."""
    return {"kind": error.kind, "message": str(error), "recoverable": error.recoverable, **error.fields()}


def command(function: Command) -> Command:
    """Adds ``--json`` and turns a `DriverError`, or a disk in trouble, into a `Failure`. The function takes ``as_json`` as a keyword."""

    @functools.wraps(function)
    def guarded(*args: Any, as_json: bool, **kwargs: Any) -> Any:
        try:
            return function(*args, as_json=as_json, **kwargs)
        except DriverError as error:
            raise Failure(error, as_json=as_json) from error
        except BrokenPipeError:
            raise  # click ends quietly: whoever read has seen enough
        except OSError as error:
            let_go_of_stdout()
            hint = _CURES.get(error.errno or 0, "") if error.filename else ""
            told = DriverError(f"{error.filename or function.__name__}: {error.strerror}", hint=hint)
            raise Failure(told, as_json=as_json) from error

    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(guarded)  # type: ignore[return-value]  # click keeps the signature


def let_go_of_stdout() -> None:
    """Forgets what standard output does not take: Python would try again at its end, and make that the exit status."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_rows(rows: Sequence[Row], *, as_json: bool, title: str = "") -> None:
    """Rows that share their keys: a table, tab-separated lines, or a JSON array."""
    if as_json:
        click.echo(json.dumps(list(rows), indent=2, default=str))
    elif sys.stdout.isatty():
        from zlayer_driver.cli.terminal import print_table  # noqa: PLC0415  # see there

        head = {key: isinstance(value, int | float) for key, value in rows[0].items()} if rows else {}
        print_table(head, ([_plain(value) for value in row.values()] for row in rows), title)
    else:
        for row in rows:
            click.echo("\t".join(_plain(value) for value in row.values()))


def show_record(record: Row, *, as_json: bool, title: str = "") -> None:
    """One thing with named properties."""
    if as_json:
        click.echo(json.dumps(record, indent=2, default=str))
    else:
        show_rows([{"": key, " ": value} for key, value in record.items()], as_json=False, title=title)


@contextmanager
def pull_report() -> Iterator[Report | None]:
    """Bars per layer on a terminal, one line a layer elsewhere; all on standard error."""
    if not sys.stderr.isatty():
        yield _print_step
        return
    from zlayer_driver.cli.terminal import bars  # noqa: PLC0415  # see there

    with bars("bytes") as progress:
        tasks: dict[str, Any] = {}

        def report(step: PullProgress) -> None:
            if not step.layer:
                return
            if step.layer not in tasks:
                tasks[step.layer] = progress.add_task(step.layer[7:19], total=step.total_bytes)
            progress.update(
                tasks[step.layer], completed=step.done_bytes, total=step.total_bytes, description=f"{step.layer[7:19]} {step.phase}"
            )

        yield report


def _print_step(step: PullProgress) -> None:
    if step.phase == "unpack":
        click.echo(f"{step.layer}: done", err=True)


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "-"
    return str(value)
