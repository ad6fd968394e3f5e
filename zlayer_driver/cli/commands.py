"""The commands. Each is a few lines over the node or the driver; what they print is `output`'s business."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zlayer_driver import __version__, fastpath
from zlayer_driver.choice import Request
from zlayer_driver.cli import agent_config
from zlayer_driver.cli import images as imaging
from zlayer_driver.cli import overlay as overlaying
from zlayer_driver.cli import place as placing
from zlayer_driver.cli import run as running
from zlayer_driver.cli.agent import agent
from zlayer_driver.cli.doctor import doctor
from zlayer_driver.cli.install import install
from zlayer_driver.cli.nodes import on_node
from zlayer_driver.cli.output import Failure, command, show_record
from zlayer_driver.config import PluginConfig, parse
from zlayer_driver.errors import DriverError
from zlayer_driver.node import Node

INTRODUCTION = f"""zlayer-driver {__version__}: a HashiCorp Nomad task driver that runs each OCI image where it belongs.

Nomad launches this file as a plugin; put it into the agent's plugin directory. For people:"""


@click.group(help=INTRODUCTION, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--state-dir",
    envvar="ZLAYER_STATE_DIR",
    type=click.Path(file_okay=False, resolve_path=True),
    metavar="DIR",
    help="Where everything that the driver keeps lies.",
)
@click.option(
    "--config",
    "agent_file",
    envvar="ZLAYER_CONFIG",
    type=click.Path(exists=True, path_type=Path),
    metavar="PATH",
    help="The Nomad agent's configuration, a file or a directory: its plugin block counts here too.",
)
@click.version_option(__version__, prog_name="zlayer-driver")
@click.pass_context
def cli(context: click.Context, state_dir: str | None, agent_file: Path | None) -> None:
    try:
        agent = context.meta[agent_config.META] = agent_config.read(agent_file) if agent_file else None
        told = {**(agent.config if agent else {}), **({"state_dir": state_dir} if state_dir else {})}
        context.obj = parse(PluginConfig, told, what=str(agent_file or "command line"))
    except DriverError as error:
        raise Failure(error, as_json=False) from error
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@click.argument("image")
@click.pass_obj
@command
def inspect(config: PluginConfig, image: str, as_json: bool) -> None:
    """Say what this node's blob caches know of IMAGE, and where it would run. Never asks a registry."""

    async def work(node: Node) -> dict[str, Any]:
        fastpath.parse(image)  # so that a text that is no reference is said to be none
        canonical = fastpath.canonical(image)
        facts = node.image_facts(canonical)
        record: dict[str, Any] = {"image": canonical, "os": facts.os, "marker": facts.marker, "isolation": facts.isolation}
        try:
            choice = node.composite.decide(Request(service=image, image=canonical), facts)
            record |= {"target": choice.target, "rule": choice.rule}
        except DriverError as error:
            record |= {"target": None, "error": str(error)}
        return record

    show_record(on_node(config, work), as_json=as_json)


for image_command in imaging.COMMANDS:
    cli.add_command(image_command)
cli.add_command(running.run)
cli.add_command(placing.place)
cli.add_command(overlaying.overlay)
cli.add_command(agent)
cli.add_command(doctor)
cli.add_command(install)
