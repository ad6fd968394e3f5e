"""What a terminal shows beside lines: tables, and bars of what goes on. Loaded only where there is one, for its library takes its time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

_COLUMNS: dict[str, type[ProgressColumn]] = {
    "bytes": DownloadColumn,
    "count": MofNCompleteColumn,
    "elapsed": TimeElapsedColumn,
    "remaining": TimeRemainingColumn,
    "share": TaskProgressColumn,
}


def print_table(head: Mapping[str, bool], rows: Iterable[Sequence[str]], title: str) -> None:
    """``head`` are the columns, and whether they hold numbers."""
    table = Table(title=title or None, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    for name, is_number in head.items():
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


@contextmanager
def bars(*columns: str) -> Iterator[Progress]:
    """On standard error, gone at the end. Beside its name and the bar itself each has ``columns``: bytes, count, elapsed, remaining, share."""
    shown = (TextColumn("{task.description}"), BarColumn(), *(_COLUMNS[name]() for name in columns))
    with Progress(*shown, console=Console(stderr=True), transient=True) as progress:
        yield progress
