"""A double of wsl.exe 2.9.4; this Linux is its one distro.

``$DOUBLES/wsl.json`` has the distro's ``name``, the ``driver`` that is installed in it, and the ``state_dir`` that is asked for. It may say
``installed`` false, a ``version`` other than 2, and ``utf8`` false, as of a WSL that does not heed ``WSL_UTF8``.
"""

from __future__ import annotations

import os
import sys

from tests.doubles.double import load, note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

SETTINGS = load("wsl.json", {})
INSIDE = ["--distribution", SETTINGS.get("name"), "--user", "root", "--cd", "/", "--exec"]
INVALID = "Invalid command line argument: {}\r\nPlease use 'wsl.exe --help' to get a list of supported arguments.\r\n"
NO_DISTRO = "There is no distribution with the supplied name.\r\nError code: Wsl/Service/WSL_E_DISTRO_NOT_FOUND\r\n"
NO_PROGRAM = "<3>WSL (9) ERROR: CreateProcessCommon:818: execvpe({}) failed: No such file or directory\r\n"
RELAY = 'cd "$0" && exec 7<>"$1" 3<"$1" 7>&- && flock -n 3 || exit 0; exec 5<>"$1.relay"; echo >&5; exec cat <&3'
OUTPUTS = ("out", "err")


def say(words: str) -> None:
    heeds = SETTINGS.get("utf8", True) and os.environ.get("WSL_UTF8") == "1"
    sys.stdout.buffer.write(words.encode("utf-8" if heeds else "utf-16-le"))


def fail(words: str) -> NoReturn:
    """As wsl.exe does for all that is its own fault: on the standard output, with exit code -1."""
    say(words)
    sys.stdout.flush()
    sys.exit(255)


def listing() -> None:
    say("  NAME      STATE           VERSION\n* Debian    Stopped         2\n")
    if SETTINGS.get("installed", True):
        say(f"  {SETTINGS['name']}    Running         {SETTINGS.get('version', 2)}\n")


def inside(program: str, argv: list[str]) -> NoReturn:
    """Nothing of the environment comes along, as long as ``WSLENV`` names nothing."""
    if os.environ.get("WSLENV") != "":
        fail("WSLENV is to be empty\r\n")
    if not SETTINGS.get("installed", True):
        fail(NO_DISTRO)
    path = {"/usr/local/bin/zlayer-driver": SETTINGS["driver"], "/bin/sh": "/bin/sh"}.get(program) or fail(NO_PROGRAM.format(program))
    logs = f"{SETTINGS['state_dir']}/logs/"
    known = [["--state-dir", SETTINGS["state_dir"], "agent"]]
    if program == "/bin/sh":
        known = [
            ["-c", RELAY, where, output]
            for where in argv[2:3]
            if where.startswith(logs) and os.access(where, os.X_OK)
            for output in OUTPUTS
        ]
    if argv not in known:
        fail(INVALID.format(argv))
    os.chdir("/")
    os.execve(path, [program, *argv], {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "WSL_DISTRO_NAME": SETTINGS["name"]})


def main() -> None:
    argv = sys.argv[1:]
    note(["wsl.exe", *argv])
    if argv == ["--list", "--verbose"]:
        listing()
    elif argv[: len(INSIDE)] == INSIDE and len(argv) > len(INSIDE):
        inside(argv[len(INSIDE)], argv[len(INSIDE) + 1 :])
    elif argv[:1] == INSIDE[:1] and argv[1:2] != INSIDE[1:2]:
        fail(NO_DISTRO)
    else:
        fail(INVALID.format(argv[0] if argv else ""))
