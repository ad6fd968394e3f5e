"""The commands. Each is a few lines over the node or the driver; what they print is `output`'s business."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

from zlayer_driver import __version__
from zlayer_driver.cli import agent_config
from zlayer_driver.cli.output import Failure
from zlayer_driver.config import PluginConfig, parse
from zlayer_driver.errors import DriverError

INTRODUCTION = f"""zlayer-driver {__version__}: a HashiCorp Nomad task driver that runs each OCI image where it belongs.

Nomad launches this file as a plugin; put it into the agent's plugin directory. For people:"""


# By name: the module of this package that has the command.
_MODULES = {
    **{name: name for name in ("agent", "doctor", "install", "overlay", "place", "run")},
    **dict.fromkeys(("images", "inspect", "mount", "prune", "pull", "rmi", "tag", "umount"), "images"),
}


class Commands(click.Group):
    """A command is loaded when it is called or described: all of them would cost each a fifth of its start."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return sorted(_MODULES)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in _MODULES:
            return None
        found: click.Command = getattr(import_module(f"{__package__}.{_MODULES[name]}"), name)
        return found


@click.group(cls=Commands, help=INTRODUCTION, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
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
