"""What is shipped: a source archive with all that a build needs, whether or not git and a compiler are there."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _build(kind: str, source: Path, target: Path, **environment: str) -> Path:
    """What setuptools makes of ``source``, as pip has it do."""
    build = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(target)!r}))"
    argv = [sys.executable, "-c", build]
    done = subprocess.run(
        argv, cwd=source, env={**os.environ, **environment}, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.mark.timeout(120)
def test_the_source_archive_has_all_that_a_build_needs(tmp_path: Path) -> None:
    archive = _build("sdist", ROOT, tmp_path, PATH="/nowhere")  # no git
    with tarfile.open(archive) as members:
        shipped = {name.partition("/")[2] for name in members.getnames()}
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path], check=True, stdin=subprocess.DEVNULL)
    needed = subprocess.run(
        ["git", "ls-files", "zlayer_driver", "setup.py", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert set(needed.stdout.splitlines()) - shipped == set()
    assert not [name for name in shipped if name.endswith((".so", ".pyc"))]
    wheel = _build("wheel", next(tmp_path.glob("*/")), tmp_path, CC="/nowhere/cc")
    assert wheel.name.endswith("py3-none-any.whl")
    with zipfile.ZipFile(wheel) as packed:
        assert {"zlayer_driver/py.typed", "zlayer_driver/backends/supervised/seccomp.json"} <= set(packed.namelist())
