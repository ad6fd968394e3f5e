"""What a Windows node has of its own imports where there is no POSIX: its backends, choice and admission, and all that they stand on."""

from __future__ import annotations

import subprocess
import sys

import pytest

# What CPython lacks on Windows, as far as this package uses it.
_WINDOWS = """
import sys
for name in ("fcntl", "grp", "pwd", "pty", "resource", "termios", "tty"):
    sys.modules[name] = None
import asyncio, os, platform, signal, subprocess, tempfile
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGRTMIN", "SIGRTMAX"):
    delattr(signal, name)
for name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY", "O_DIRECTORY", "fork", "geteuid", "mkfifo", "pidfd_open", "pipe2", "setsid", "uname"):
    delattr(os, name)
"""


@pytest.mark.parametrize("module", ["backends.hcs", "backends.hcs_logs", "backends.wsl2", "admission", "composite", "tasks"])
def test_module_imports_without_posix(module: str) -> None:
    script = f"{_WINDOWS}\nimport zlayer_driver.{module}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
