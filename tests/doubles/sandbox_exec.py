"""A double of macOS's sandbox-exec(1): it reads the profile, checks the parameters and becomes the command, without a sandbox.

With ``$DOUBLES/no-sandbox``, none can be applied.
"""

from __future__ import annotations

import os
import re
import sys

from tests.doubles.double import HOME, load, note, parse, usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

BAD_PROFILE, NOT_APPLIED = 65, 71
OPERATIONS = {
    *("default", "process-fork", "process-exec", "signal", "sysctl-read", "mach-lookup", "network*"),
    *("file-read*", "file-read-metadata", "file-write*", "file-write-data"),
}


def fail(message: str, status: int) -> NoReturn:
    sys.stderr.write(f"sandbox-exec: {message}\n")
    sys.exit(status)


def check(profile: str, given: dict[str, str]) -> None:
    rules = profile.replace("\n", " ")
    if rules.count("(") != rules.count(")") or not rules.startswith("(version 1)"):
        fail("<input string>:1:0: unbalanced, or of no version", BAD_PROFILE)
    allowed: set[str] = set()
    for verb, operations in re.findall(r"\((allow|deny) ([^()\"]+)", rules):
        if unknown := set(operations.split()) - OPERATIONS:
            fail(f"unbound variable: {unknown}", BAD_PROFILE)
        allowed |= set(operations.split()) if verb == "allow" else set()
    if not allowed & {"default", "process-exec"}:
        fail("execvp() of the command failed: Operation not permitted", NOT_APPLIED)
    named = set(re.findall(r"\(param \"(\w+)\"\)", rules))
    if named != given.keys():
        fail(f"the profile's parameters are {sorted(named)}, and {sorted(given)} are given", BAD_PROFILE)
    if bad := [path for path in given.values() if os.path.realpath(path) != path]:
        fail(f"no sandbox knows {bad} by that path", BAD_PROFILE)


def main() -> None:
    found, command = parse(
        sys.argv[1:], options={"-f", "-p"}, repeated={"-D"}, least=1, stop_at=0 if not sys.argv[1].startswith("-") else 1
    )
    if ("-f" in found) == ("-p" in found) or not all("=" in text for text in found["-D"]):
        usage("one profile is needed, and parameters as key=value")
    note(["sandbox-exec", *sys.argv[1:]])
    profile = found.get("-p")
    if profile is None:
        with open(found["-f"]) as file:  # noqa: PTH123 # pathlib costs half of a double's start
            profile = file.read()
    check(profile, dict(text.split("=", 1) for text in found["-D"]))
    if load("no-sandbox", None):
        fail("sandbox_apply: Operation not permitted", NOT_APPLIED)
    try:
        os.execvpe(command[0], command, {**os.environ, "DOUBLES": HOME})  # it becomes it
    except OSError as error:
        fail(f"execvp() of '{command[0]}' failed: {error.strerror}", NOT_APPLIED)
