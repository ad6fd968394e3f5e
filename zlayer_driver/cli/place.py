"""``zlayer-driver place``: decisions for a batch of jobs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import BinaryIO

import click

from zlayer_driver.choice import NodeShape
from zlayer_driver.cli.output import command, show_rows
from zlayer_driver.config import PluginConfig
from zlayer_driver.errors import ConfigError
from zlayer_driver.model import OS, Target
from zlayer_driver.node import Node
from zlayer_driver.nomad.placement import Answer, answers

_KEPT_FACTS = 4096  # images whose facts are kept for the length of one batch
_NOT_ALL_PLACED = 3


@click.command()
@click.argument("file", type=click.File("rb"), default="-")
@click.option(
    "--node", metavar="KEY=VALUE,TARGET…", help="Another node than this: native_os=linux|windows|darwin and the targets that it has."
)
@click.option("--summary", is_flag=True, help="Print how many jobs go where, instead of each.")
@click.pass_obj
@command
def place(config: PluginConfig, file: BinaryIO, node: str | None, summary: bool, as_json: bool) -> None:
    """Decide where each job of FILE would run: one JSON object a line in, one decision a line out.

    Exits with 0 if all have a place, 3 if some have not.
    """
    here = Node(config)
    shape = parse_node(node) if node else here.composite.shape
    decisions = _Counted(answers(file, shape, lru_cache(_KEPT_FACTS)(here.image_facts)))
    if summary:
        for _ in decisions:
            pass
        rows = [{"target": target, "rule": rule, "jobs": jobs} for (target, rule), jobs in sorted(decisions.counts.items())]
        show_rows(rows, as_json=as_json, title="Placement")
    else:
        for answer in decisions:
            sys.stdout.write(json.dumps(answer) + "\n")
    if decisions.refused:
        raise click.exceptions.Exit(_NOT_ALL_PLACED)


class _Counted:
    """Hands answers through and counts them by target and rule, refusals by the kind of their error."""

    def __init__(self, stream: Iterable[Answer]) -> None:
        self._stream = iter(stream)
        self.counts: Counter[tuple[str, str]] = Counter()
        self.refused = 0

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> Answer:
        answer = next(self._stream)
        if error := answer.get("error"):
            self.refused += 1
            self.counts["none", error["kind"]] += 1
        else:
            self.counts[answer["target"], answer["rule"]] += 1
        return answer


def parse_node(text: str) -> NodeShape:
    """``native_os=darwin,delegate,vz`` as a node: its operating system and the targets besides its primary."""
    native, targets = OS.LINUX, {Target.PRIMARY}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        try:
            if key == "native_os":
                native = OS(value)
            else:
                targets.add(Target(part))
        except ValueError:
            raise ConfigError(
                f"--node: {part!r} is unknown", hint="use native_os=linux|windows|darwin and delegate, vz, vz_linux, with commas between"
            ) from None
    return NodeShape(native, frozenset(targets))
