"""The example of a backend in a package of its own: installed for real, seen by the doctor, held to the contract by its own tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "zlayer-driver-process"

pytestmark = [pytest.mark.needs("linux"), pytest.mark.timeout(120)]


def _python(site: Path, *argv: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site), "ZLAYER_STATE_DIR": str(cwd / "state")}
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=environment, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_installs_and_keeps_the_contract(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(EXAMPLE, source)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        str(site),
        str(source),
    ]
    subprocess.run(pip, check=True, capture_output=True)
    rows = {
        row["what"]: row["detail"]
        for row in json.loads(_python(site, "-c", "from zlayer_driver.cli.main import entry; entry()", "doctor", "--json", cwd=tmp_path))
    }
    assert rows["backend process"] == ""
    _python(site, "-m", "pytest", "-q", "-W", "error", "--import-mode=importlib", cwd=source)
