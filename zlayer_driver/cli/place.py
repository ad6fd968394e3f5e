"""``zlayer-driver place``: decisions for a batch of jobs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
from click.core import ParameterSource

from zlayer_driver import fastpath
from zlayer_driver.choice import NodeShape
from zlayer_driver.cli.output import command, show_rows
from zlayer_driver.cli.submitting import Manner, batch_name, dry_run, submit
from zlayer_driver.config import PluginConfig
from zlayer_driver.errors import CacheError
from zlayer_driver.model import OS, ImageFacts, PullPolicy, Target
from zlayer_driver.node import Node
from zlayer_driver.nomad.batch import Batch, Chunk, chunks, read_facts
from zlayer_driver.nomad.client import Access, Nomad
from zlayer_driver.nomad.fleet import FleetNode, ask_fleet, read_fleet
from zlayer_driver.nomad.jobs import SubmitLine, Work, works
from zlayer_driver.nomad.placement import Answer, Decider, Facts
from zlayer_driver.nomad.scoring import Fleet
from zlayer_driver.nomad.spread import FleetBatch

_KEPT_FACTS = 4096  # images whose facts are kept for the length of one batch
NOT_ALL_PLACED = 3
_TO_NOMAD: Final = ("submit", "dry_run")
_ONLY_WITH: Final = {"resume": ("submit",), "batch": _TO_NOMAD, "pack": _TO_NOMAD, "dispatch": _TO_NOMAD, "explain": ("fleet",)}
_NOT_WITH: Final = {"node": ("fleet", *_TO_NOMAD), "summary": _TO_NOMAD, "form": _TO_NOMAD, "explain": _TO_NOMAD, "pack": ("dispatch",)}


class NodeShapeType(click.ParamType[NodeShape]):
    """``native_os=darwin,delegate,vz`` as a node: its operating system and the targets besides its primary."""

    name = "node"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> NodeShape:
        native, targets = OS.LINUX, {Target.PRIMARY}
        for part in filter(None, value.split(",")):
            key, _, system = part.partition("=")
            try:
                if key == "native_os":
                    native = OS(system)
                else:
                    targets.add(Target(part))
            except ValueError:
                self.fail(
                    f"{part!r} is unknown: use native_os=linux|windows|darwin and delegate, vz, vz_linux, with commas between", param, ctx
                )
        return NodeShape(native, frozenset(targets))


def _print_schema(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **SubmitLine.model_json_schema()}, indent=2))
        context.exit()


@click.command()
@click.argument("file", type=click.File("rb"), default="-")
@click.option(
    "--node",
    type=NodeShapeType(),
    metavar="KEY=VALUE,TARGET…",
    help="Another node than this: native_os=linux|windows|darwin and the targets that it has.",
)
@click.option(
    "--facts", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Image facts, one JSON object a line; asked first."
)
@click.option("--caches/--no-caches", default=True, help="Whether to ask this node's blob caches for facts.")
@click.option("--pull", is_flag=True, help="Pull images of which nothing is known. Nothing else here uses the network.")
@click.option("--fleet", metavar="nomad|FILE", help="Choose among nodes that Nomad tells of, or a file with the same JSON.")
@click.option("--explain", is_flag=True, help="With --fleet: say of every node how it would do, or why it cannot.")
@click.option(
    "--workers", type=click.IntRange(1, 64), default=lambda: len(os.sched_getaffinity(0)), help="Threads; all processors if not given."
)
@click.option("--format", "form", type=click.Choice(["ndjson", "table"]), default="ndjson", help="How decisions are printed.")
@click.option("--summary", is_flag=True, help="Print how many jobs go where, instead of each.")
@click.option("--schema", is_flag=True, is_eager=True, expose_value=False, callback=_print_schema, help="Print the JSON Schema of a line.")
@click.option("--submit", is_flag=True, help="Hand the jobs to Nomad, as NOMAD_* variables say where it is, and follow them to their end.")
@click.option("--dry-run", is_flag=True, help="Print the Nomad jobs that --submit would register, one a line.")
@click.option("--resume", is_flag=True, help="With --submit: go on with a batch that was interrupted; nothing is submitted twice.")
@click.option("--batch", metavar="NAME", help="Name of the batch in Nomad; that of FILE if not given.")
@click.option("--pack", type=click.IntRange(1, 1000), default=1, help="With --submit: jobs that become groups of one Nomad job.")
@click.option("--dispatch", metavar="JOB", default="", help="With --submit: dispatch this parameterised job for each line instead.")
@click.pass_obj
@command
def place(config: PluginConfig, /, file: BinaryIO, node: NodeShape | None, as_json: bool, form: str, summary: bool, **options: Any) -> None:
    """Decide where each job of FILE would run: one JSON object a line in, one decision a line out.

    Exits with 0 if all have a place, 3 if some have not, 2 if it was called wrongly.
    """
    _refuse_idle(click.get_current_context())
    with _facts(Node(config), options["facts"], caches=options["caches"], pull=options["pull"]) as (here, facts):
        known = lru_cache(_KEPT_FACTS)(facts)
        fleet = Fleet(fleet_nodes(options["fleet"])) if options["fleet"] else None
        with _watched(chunks(file), file) as work:
            if options["submit"] or options["dry_run"]:
                all_good = _to_nomad(config, works(work, known, fleet), getattr(file, "name", ""), as_json=as_json, **options)
            else:
                shape = node or here.composite.shape
                decided = (
                    FleetBatch(fleet, known, explain=options["explain"]) if fleet else Batch(Decider(shape, known), options["workers"])
                )
                all_good = _decide(decided, work, summary=summary, as_json=as_json, as_table=form == "table")
    if not all_good:
        raise click.exceptions.Exit(NOT_ALL_PLACED)


def _refuse_idle(context: click.Context) -> None:
    """`click.UsageError` for an option that would do nothing beside the others."""
    flags = {option.name: option.opts[0] for option in context.command.params}
    given = [name for name in context.params if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    for name in given:
        wanted = _ONLY_WITH.get(name, ())
        if wanted and not set(wanted) & set(given):
            raise click.UsageError(f"{flags[name]} does nothing without {' or '.join(flags[other] for other in wanted)}")
        for other in _NOT_WITH.get(name, ()):
            if other in given:
                raise click.UsageError(f"{flags[name]} does nothing beside {flags[other]}: leave one of them out")


def _decide(batch: Batch | FleetBatch, work: Iterable[Chunk], *, summary: bool, as_json: bool, as_table: bool) -> bool:
    """Prints decisions, or how many there are of each kind; whether all have a place."""
    answers = batch.answers(work)
    if summary:
        for _ in answers:
            pass
        show_summary(batch.counts, as_json=as_json)
    else:
        print_answers(answers, as_table=as_table and not as_json)
    return all(target != "none" for target, _ in batch.counts)


def _to_nomad(config: PluginConfig, found: Iterator[Work | Answer], file: str, *, as_json: bool, **options: Any) -> bool:
    name = batch_name(options["batch"], file)
    manner = Manner(
        batch=name,
        journal=Path(config.state_dir, "batches", f"{name}.ndjson"),
        pack=options["pack"],
        parent=options["dispatch"],
        resume=options["resume"],
    )
    return dry_run(found, manner) if options["dry_run"] else submit(found, manner, as_json=as_json)


def fleet_nodes(where: str) -> list[FleetNode]:
    """The nodes of Nomad, as the NOMAD_* variables say where it is, or of a file."""
    if where != "nomad":
        return read_fleet(Path(where))

    async def ask() -> list[FleetNode]:
        async with Nomad(Access.from_environment(os.environ)) as nomad:
            return await ask_fleet(nomad)

    return asyncio.run(ask())


@contextmanager
def _facts(node: Node, file: Path | None, *, caches: bool, pull: bool) -> Iterator[tuple[Node, Facts]]:
    """The node, and what is known of images: from the file, else from the node's caches, else by a pull."""
    told = read_facts(file) if file else {}
    opened = [_opened(path) for path in node.caches] if caches else []
    one_at_a_time = threading.Lock()
    with asyncio.Runner() as runner:

        def facts(image: str) -> ImageFacts:
            if image in told:
                return told[image]
            found = fastpath.image_facts(image, opened)
            if pull and found == ImageFacts():
                with one_at_a_time:
                    runner.run(node.composite.pull(image, policy=PullPolicy.IF_NOT_PRESENT, auth=None, report=None))
                found = node.image_facts(image)
            return found

        try:
            yield node, facts
        finally:
            runner.run(node.close())
            for cache in opened:
                if isinstance(cache, fastpath.BlobCache):
                    cache.close()


def _opened(path: Path) -> fastpath.BlobCache | Path:
    """A handle, so that each question need not open the file again; the path where there is no cache yet."""
    try:
        return fastpath.BlobCache(path)
    except CacheError:
        return path


@contextmanager
def _watched(work: Iterable[Chunk], file: BinaryIO) -> Iterator[Iterable[Chunk]]:
    """The work, with a bar of the bytes read on a terminal."""
    if not sys.stderr.isatty():
        yield work
        return
    from zlayer_driver.cli.terminal import bars  # noqa: PLC0415  # see there

    with bars("share", "bytes", "remaining") as progress:
        bar = progress.add_task("placing", total=_size(file))

        def watched() -> Iterator[Chunk]:
            for chunk, number in work:
                yield chunk, number
                progress.advance(bar, len(chunk))

        yield watched()


def _size(file: BinaryIO) -> int | None:
    """Bytes of a regular file; of a pipe nobody knows."""
    try:
        return os.fstat(file.fileno()).st_size or None
    except OSError:
        return None


def show_summary(counts: Counter[tuple[str, str]], *, as_json: bool) -> None:
    rows = [{"target": str(target), "rule": str(rule), "jobs": jobs} for (target, rule), jobs in sorted(counts.items())]
    show_rows(rows, as_json=as_json, title="Placement")


def print_answers(answers: Iterable[bytes | memoryview], *, as_table: bool) -> None:
    """Blocks of NDJSON answers as they are, or in columns."""
    out = sys.stdout.buffer
    for block in answers:
        out.write(b"".join(map(_row, bytes(block).splitlines())) if as_table else block)
    out.flush()


def _row(line: bytes) -> bytes:
    answer: Mapping[str, Any] = json.loads(line)
    error = answer.get("error")
    where, why = ("-", f"line {answer['line']}: {error['message']}") if error else (answer["target"], answer["rule"])
    node = f" on {answer['node']['name']}" if "node" in answer else ""
    return f"{_printable(answer['id'] or '-'):<32} {where:<10} {_printable(why + node)}\n".encode()


def _printable(text: str) -> str:
    """Text that cannot steer a terminal."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
