"""This process and the control groups that the machine has."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

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
        if group.exists():
            group.rmdir()


async def test_a_group_is_removed_with_all_that_it_has(groups: list[Path]) -> None:
    script = 'for group; do echo 0 >"$group/cgroup.procs"; done; for n in 1 2 3 4 5; do sleep 1000 & done; echo begun; exec sleep 1000'
    child = await asyncio.create_subprocess_exec("sh", "-c", script, "sh", *map(str, groups), stdout=subprocess.PIPE)
    assert child.stdout
    assert await child.stdout.readline() == b"begun\n"
    (groups[0] / "below").mkdir()
    for _ in range(2):
        await cgroups.remove(f"/{groups[0].name}")
    assert not any(group.exists() for group in groups)
    assert await child.wait() == -SIGKILL


def test_awakening_the_kernel_moves_nobody(groups: list[Path]) -> None:
    def enter() -> None:
        for group in groups:
            (group / "cgroup.procs").write_text("0")

    done = subprocess.run([sys.executable, "-c", _PROBE], preexec_fn=enter, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", str(len(groups))]


def test_a_machine_without_control_groups_need_not_be_awakened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "trees", lambda: cgroups.Trees({}, None))
    cgroups.awaken()
