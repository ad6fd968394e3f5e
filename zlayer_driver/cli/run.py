"""``zlayer-driver run``: one container in the foreground, by the same driver that Nomad drives."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from zlayer_driver import fastpath
from zlayer_driver.cli.output import command, pull_report
from zlayer_driver.config import PluginConfig
from zlayer_driver.driver import Driver
from zlayer_driver.model import Exit, Isolation, PullPolicy, Resources, Target, TaskRequest

_RUNTIME = {"primary": Isolation.SANDBOX, "delegate": Isolation.VM, "vz": Isolation.VZ, "vz_linux": Isolation.VZ_LINUX}
_STOP_TIMEOUT_S = 10.0
Sink = Callable[[bytes], object]


def _pairs(_context: click.Context, _option: click.Parameter, given: Sequence[str]) -> dict[str, str]:
    for pair in given:
        if pair.find("=") < 1:
            raise click.BadParameter(f"{pair!r} is not of the form NAME=VALUE.")
    return dict(pair.split("=", 1) for pair in given)


@click.command()
@click.option("--target", type=click.Choice([*_RUNTIME]), help="Run it there, instead of where the rules say.")
@click.option("-e", "--env", multiple=True, callback=_pairs, metavar="NAME=VALUE", help="Set an environment variable; may be given again.")
@click.option("-u", "--user", default="", help="User in the container: a name, uid, or uid:gid.")
@click.option("--memory", type=click.IntRange(min=4), metavar="MIB", help="Memory limit.")
@click.argument("image")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD [ARG]...]")
@click.pass_obj
@command
def run(config: PluginConfig, /, image: str, argv: Sequence[str], as_json: bool, **options: Any) -> None:
    """Run CMD in a new container of IMAGE, and remove it when it ends.

    The exit status is the container's. An interrupt stops it as Nomad would.
    """
    request = _request(image, argv, **options)
    out, err = bytearray(), bytearray()
    sinks: tuple[Sink, Sink] = (out.extend, err.extend) if as_json else (_writer(sys.stdout), _writer(sys.stderr))
    target, exit_ = asyncio.run(_run(config, request, sinks))
    if as_json:
        texts = {"stdout": out.decode(errors="replace"), "stderr": err.decode(errors="replace")}
        result = {"code": exit_.code, "signal": exit_.signal, "oom_killed": exit_.oom_killed, "error": exit_.error}
        click.echo(json.dumps({"id": request.id, "target": target, "exit": result, **texts}))
    elif exit_.error:
        click.echo(f"zlayer-driver: {exit_.error}", err=True)
    elif exit_.oom_killed:
        click.echo("zlayer-driver: the container ran out of memory", err=True)
    raise click.exceptions.Exit(exit_.code if exit_.code >= 0 else 1)


def _request(image: str, argv: Sequence[str], *, target: str | None, env: Mapping[str, str], user: str, memory: int | None) -> TaskRequest:
    config: dict[str, Any] = {"image": image, "runtime": _RUNTIME[target] if target else None}
    if argv:
        config |= {"command": argv[0], "args": list(argv[1:])}
    name = fastpath.canonical(image).rpartition("/")[2].partition(":")[0].partition("@")[0]
    resources = Resources(memory_bytes=memory << 20 if memory else 0)
    return TaskRequest(id=f"cli/{name}/{secrets.token_hex(4)}", name=name, config=config, env=env, user=user, resources=resources)


async def _run(config: PluginConfig, request: TaskRequest, sinks: tuple[Sink, Sink]) -> tuple[Target, Exit]:
    driver = Driver()
    await driver.set_config(config, validate_only=False)
    await driver.init()
    try:
        with pull_report() as report:
            image = fastpath.canonical(request.config["image"])
            await driver.node.composite.pull(image, policy=PullPolicy.IF_NOT_PRESENT, auth=None, report=report)
        with tempfile.TemporaryDirectory(prefix="zlayer-run-") as directory:
            return await _foreground(driver, request, Path(directory), sinks)
    finally:
        await driver.shutdown()


async def _foreground(driver: Driver, request: TaskRequest, directory: Path, sinks: tuple[Sink, Sink]) -> tuple[Target, Exit]:
    paths = directory / "stdout", directory / "stderr"
    over, faults = asyncio.Event(), list[OSError]()
    out, err = (_until_it_fails(sink, faults, over) for sink in sinks)
    with _copied(paths[0], out) as out_ended, _copied(paths[1], err) as err_ended, _interrupts(over):
        handle = await driver.start_task(replace(request, stdout_path=str(paths[0]), stderr_path=str(paths[1])))
        try:
            exit_ = await _end(driver, request.id, over)
            await asyncio.gather(out_ended.wait(), err_ended.wait())
        finally:
            await driver.destroy_task(request.id)
    if faults:
        raise faults[0]
    return handle.target, exit_


async def _end(driver: Driver, task_id: str, over: asyncio.Event) -> Exit:
    """The container's exit, by itself or by an orderly stop once ``over`` is set."""
    ended, asked = asyncio.ensure_future(driver.wait_task(task_id)), asyncio.ensure_future(over.wait())
    try:
        await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await driver.stop_task(task_id, timeout_s=_STOP_TIMEOUT_S, signal="")
        return await ended
    finally:
        ended.cancel()
        asked.cancel()


def _until_it_fails(sink: Sink, faults: list[OSError], over: asyncio.Event) -> Sink:
    """A sink that notes its fault and drops what comes after: nobody wants more, and the container must not wait for a reader."""

    def write(data: bytes) -> None:
        if not faults:
            try:
                sink(data)
            except OSError as error:
                faults.append(error)
                over.set()

    return write


@contextmanager
def _interrupts(over: asyncio.Event) -> Iterator[None]:
    """Turns SIGINT and SIGTERM into one orderly stop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextmanager
def _copied(path: Path, sink: Sink) -> Iterator[asyncio.Event]:
    """A FIFO at ``path`` whose data go to ``sink``; the event is set at its end."""
    os.mkfifo(path, 0o600)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def readable() -> None:
        with suppress(BlockingIOError):
            if data := os.read(fd, 1 << 16):
                sink(data)
            else:
                loop.remove_reader(fd)
                ended.set()

    loop.add_reader(fd, readable)
    try:
        yield ended
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _writer(stream: Any) -> Sink:
    def write(data: bytes) -> None:
        stream.buffer.write(data)
        stream.buffer.flush()

    return write
