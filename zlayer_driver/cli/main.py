"""The program: serves Nomad when Nomad launches it, and is a command line for people otherwise."""

from __future__ import annotations

import os
import sys

COOKIE_NAME = "NOMAD_PLUGIN_MAGIC_COOKIE"


def entry() -> None:
    """The console script. Nomad's launch must not pay for the command line's imports, so the two part here."""
    if len(sys.argv) == 1 and COOKIE_NAME in os.environ:
        from zlayer_driver.cli.serve import serve  # noqa: PLC0415  # the one of the two that is needed

        sys.exit(serve())
    else:
        from zlayer_driver.cli.commands import cli  # noqa: PLC0415  # likewise
        from zlayer_driver.cli.output import let_go_of_stdout  # noqa: PLC0415  # likewise

        try:
            cli(prog_name="zlayer-driver")
        except OSError as error:  # of what options such as --version print; commands tell of theirs
            let_go_of_stdout()
            sys.exit(f"zlayer-driver: standard output: {error.strerror}")
