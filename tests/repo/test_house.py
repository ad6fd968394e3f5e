"""House rules that no linter knows."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import zlayer_driver
from zlayer_driver.backends import TABLE

ROOT = Path(__file__).parents[2]
MAX_LINES = 400


def _tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--", *patterns], cwd=ROOT, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def test_files_stay_small() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in _tracked("*.py")
        if "_gen" not in path.parts and (lines := path.read_text().count("\n")) > MAX_LINES
    }
    assert not long, f"over {MAX_LINES} lines: {long}"


def test_the_version_has_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == zlayer_driver.__version__
    assert f"## {zlayer_driver.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_each_lint_exception_has_its_reason() -> None:
    bare = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in _tracked("*.py", "*.pyx", "*.pyi")
        if "_gen" not in path.parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"#\s*(noqa|type:\s*ignore)(?![^#]*#\s*\S)", line) and "re.search" not in line
    ]
    assert not bare, f"noqa or type: ignore without a reason: {bare}"


def test_architecture_names_every_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    modules = [
        path
        for path in _tracked("zlayer_driver/*.py", "zlayer_driver/*.pyx")
        if path.parent.name == "zlayer_driver" and path.name != "__init__.py"
    ]
    missing = [path.name for path in modules if path.name not in text]
    assert not missing, f"ARCHITECTURE.md does not mention: {missing}"


def test_backends_never_import_each_other() -> None:
    """A backend is a module and those whose names begin with its; what several need stands beside them, and is nobody's."""
    backends = {entry.module.rpartition(".")[2] for entry in TABLE} | {"fake"}

    def owner(module: str) -> str:
        owners = [backend for backend in backends if module == backend or module.startswith(f"{backend}_")]
        return max(owners, key=len, default="")

    crossings = [
        f"{path.relative_to(ROOT)} imports {found[1] or found[2]}"
        for path in _tracked("zlayer_driver/backends/*.py")
        for found in re.finditer(r"^from zlayer_driver\.backends(?:\.(\w+)| import (\w+))", path.read_text(), re.MULTILINE)
        if (other := owner(found[1] or found[2])) and other != owner(path.stem)
    ]
    assert not crossings
