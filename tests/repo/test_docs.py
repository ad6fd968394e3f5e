"""The pages: they build without a warning, what is made from the code is fresh, and packages are those of set-up."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import reference, rules, support

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.mark.timeout(120)
def test_the_pages_build(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "sphinx", "-n", "-W", "-q", "-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("path", "made"), [(reference.TARGET, reference.reference), (rules.TARGET, rules.picture), (support.TARGET, support.matrix)]
)
def test_what_is_made_from_the_code_is_fresh(path: Path, made: Callable[[], str]) -> None:
    assert path.read_text(encoding="utf-8") == made(), f"stale: make it again by python -m {made.__module__}"


def test_pages_name_the_packages_of_setup() -> None:
    setup = set(re.findall(r'^packages="(.*)"', (ROOT / "tools" / "setup").read_text(encoding="utf-8"), re.MULTILINE)[0].split())
    lines = re.findall(r"^\$ apt-get install (.*)$", (DOCS / "install.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = {word for line in lines for word in line.split() if not word.startswith("-")}
    assert named <= setup
    assert named >= {"runc", "conmon", "qemu-system-x86", "erofs-utils", "lz4"}
