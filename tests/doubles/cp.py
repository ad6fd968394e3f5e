"""A double of macOS's cp(1), as far as it clones: the copy is a plain one."""

from __future__ import annotations

import os
import sys

from tests.doubles.double import note, usage


def main() -> None:
    argv = sys.argv[1:]
    if argv[:3] != ["-c", "-R", "-p"] or len(argv) != 5:
        usage(f"{argv} is no clone of a tree")
    source, target = argv[3:]
    if not source.endswith("/.") or not os.path.isdir(source) or not os.path.isdir(target):  # noqa: PTH112 # pathlib is slow to load
        usage(f"cp: {source} is not the content of a directory, or {target} is none")
    note(["cp", *argv])
    os.execv("/bin/cp", ["cp", "-R", "-p", source, target])  # it becomes it
