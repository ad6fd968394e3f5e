"""``zlayer-driver overlay``: what this node's overlay is, whom it knows, and which hop to a peer fails. Looks only, changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import click

from zlayer_driver.cli.output import command, show_record, show_rows
from zlayer_driver.config import PluginConfig
from zlayer_driver.overlay.inspection import Inspector, look
from zlayer_driver.overlay.overlay import STATE

T = TypeVar("T")


@click.group()
def overlay() -> None:
    """Look at this node's part of the overlay network. Needs root."""


def _look(config: PluginConfig, work: Callable[[Inspector], T]) -> T:
    return asyncio.run(look(work, Path(config.state_dir, STATE)))


@overlay.command()
@click.pass_obj
@command
def status(config: PluginConfig, as_json: bool) -> None:
    """Show the node's links, subnets and leases."""
    show_record(_look(config, Inspector.status), as_json=as_json)


@overlay.command()
@click.pass_obj
@command
def peers(config: PluginConfig, as_json: bool) -> None:
    """List the other nodes, and what is missing on the way to them."""
    show_rows(_look(config, lambda seen: list(seen.peers())), as_json=as_json)


@overlay.command()
@click.pass_obj
@command
def check(config: PluginConfig, as_json: bool) -> None:
    """Try every hop on the way to each peer, up to the first that fails. Exit status 1 if one does."""
    hops = _look(config, lambda seen: list(seen.check()))
    show_rows([asdict(hop) for hop in hops], as_json=as_json)
    if not all(hop.ok for hop in hops):
        raise click.exceptions.Exit(1)
