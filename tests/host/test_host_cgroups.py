"""This process and the control groups that the machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zlayer_driver.host import cgroups

pytestmark = pytest.mark.needs("linux", "root")
_PROBE = """
from pathlib import Path
from zlayer_driver.host import cgroups
before = Path("/proc/self/cgroup").read_text()
cgroups.awaken()
print(Path("/proc/self/cgroup").read_text() == before, before.count("zlayer-test"))
"""


@pytest.fixture
def groups() -> Iterator[list[Path]]:
    """One in every tree but cpuset's, which takes nobody before it is told its CPUs."""
    mounted = cgroups.trees()
    roots = [root for root in mounted.roots() if root != mounted.v1.get("cpuset")]
    made = [root / f"zlayer-test-{os.getpid()}" for root in roots]
    for group in made:
        group.mkdir()
    yield made
    for group in made:
        group.rmdir()


def test_awakening_the_kernel_moves_nobody(groups: list[Path]) -> None:
    def enter() -> None:
        for group in groups:
            (group / "cgroup.procs").write_text("0")

    done = subprocess.run([sys.executable, "-c", _PROBE], preexec_fn=enter, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", str(len(groups))]


def test_a_machine_without_control_groups_need_not_be_awakened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "trees", lambda: cgroups.Trees({}, None))
    cgroups.awaken()
