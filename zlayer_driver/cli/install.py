"""``zlayer-driver install``: the program where the Nomad agent looks for plugins."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from zlayer_driver.cli.agent_config import PLUGIN
from zlayer_driver.cli.output import command, show_record
from zlayer_driver.config import PluginConfig
from zlayer_driver.errors import ConfigError

_AGENT = """\
plugin_dir = "{plugin_dir}"

plugin "{plugin}" {{
  config {{
    state_dir = "{state_dir}"
  }}
}}
"""


@click.command()
@click.option(
    "--plugin-dir",
    required=True,
    type=click.Path(file_okay=False, resolve_path=True, path_type=Path),
    metavar="DIR",
    help="The agent's plugin_dir; made if it is not there.",
)
@click.pass_obj
@command
def install(config: PluginConfig, /, plugin_dir: Path, as_json: bool) -> None:
    """Link this program into DIR, and print what belongs into the agent's configuration.

    The link leads to this installation, so that an upgrade of it is an upgrade of the plugin.
    """
    program = Path(sys.prefix, "bin", PLUGIN)
    if not program.is_file():
        raise ConfigError(f"there is no {program}", hint="install zlayer-driver by pip into the environment that runs it")
    link = plugin_dir / PLUGIN
    _link(link, program)
    agent = _AGENT.format(plugin_dir=plugin_dir, plugin=PLUGIN, state_dir=config.state_dir)
    if as_json:
        show_record({"plugin": str(link), "program": str(program), "agent_config": agent}, as_json=True)
    else:
        click.echo(f"{link} -> {program}", err=True)
        click.echo(agent, nl=False)


def _link(link: Path, program: Path) -> None:
    """Replaces an earlier link; never a file that somebody else put there."""
    fresh = link.with_name(f".{link.name}.new")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.exists() and not link.is_symlink():
            raise ConfigError(f"{link} is there and is no link", hint="move it away first")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(program)
        fresh.replace(link)
    except OSError as error:
        raise ConfigError(
            f"the plugin cannot be put into {link.parent}: {error.strerror}", hint="give another directory, or run it as root"
        ) from error
