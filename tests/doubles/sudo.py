"""A double of the sudo in a macOS guest, for users by their numbers."""

from __future__ import annotations

import os
import sys

from tests.doubles.double import parse, usage


def main() -> None:
    found, command = parse(sys.argv[1:], flags={"-n"}, options={"-u", "-g"}, least=1)
    if "-n" not in found:
        usage("sudo: a terminal is required to read the password")
    if "-u" in found:
        user, group = (int(str(found.get(key, found["-u"])).removeprefix("#")) for key in ("-u", "-g"))
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    os.execvp(command[0], command)  # it becomes it
