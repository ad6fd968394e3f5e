"""Runs one task and writes down how it ended: ``supervisor.py DIRECTORY ARGV...``, with the task's streams as its own.

It goes on as an orphan, so that it outlives the driver. Once the task runs, DIRECTORY/pids holds our pid and the task's, and the first process
ends with 0; once the task has ended, and all that it left in its process group, DIRECTORY/exit holds its return code as `subprocess` gives it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


def main(directory: Path, argv: list[str]) -> int:
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        return 0 if os.read(reader, 1) else 1
    task = subprocess.Popen(argv, start_new_session=True)  # what the task asks for
    _write(directory / "pids", f"{os.getpid()} {task.pid}")
    os.write(writer, b"1")
    os.waitid(os.P_PID, task.pid, os.WEXITED | os.WNOWAIT)
    with suppress(ProcessLookupError):
        os.killpg(task.pid, signal.SIGKILL)
    _write(directory / "exit", str(task.wait()))
    return 0


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
