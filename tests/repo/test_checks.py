"""The project's own checks, one test a tool, so that one command runs them all."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sysconfig.get_path("scripts"))
CHECKS = {
    "ruff check": [str(BIN / "ruff"), "check", "."],
    "ruff format": [str(BIN / "ruff"), "format", "--check", "--diff", "."],
    "mypy": [str(BIN / "mypy")],
    "stubtest": [sys.executable, "-m", "mypy.stubtest", "zlayer_driver._fastpath"],
    "cython-lint": [str(BIN / "cython-lint"), "zlayer_driver"],
    "import-linter": [str(BIN / "lint-imports"), "--no-cache"],
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("check", CHECKS)
def test_check(check: str) -> None:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}  # cython-lint calls another program
    result = subprocess.run(CHECKS[check], cwd=ROOT, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert result.returncode == 0, f"{check}:\n{result.stdout[-8000:]}{result.stderr[-4000:]}"
