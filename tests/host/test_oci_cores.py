"""A container without cores of its own runs on those that nobody has reserved, and goes on doing so when they change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.host.oci_lab import OneImage, backend, handle, shell
from zlayer_driver.cores import SharedCores
from zlayer_driver.host import cgroups
from zlayer_driver.model import Handle, Resources

pytestmark = pytest.mark.needs("linux", "root", "runc", "conmon", "busybox")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A control group such as Nomad keeps the cores in; of both CPUs that the test needs."""
    mounted = cgroups.trees()
    group = (mounted.v1.get("cpuset") or mounted.v2 or Path()) / f"zlayer-test-{os.getpid()}"
    group.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):
        (group / name).write_text("0-1" if name == "cpuset.cpus" else "0")
    yield group
    group.rmdir()


async def test_a_container_follows_the_cores_that_are_left(root: Path, images: OneImage, shared: Path) -> None:
    oci = backend(root, images)
    resources = Resources(cpuset_group=str(shared))
    task = handle("one", await oci.start(shell("one", "exec sleep 1000", resources=resources)))

    async def cpus(task: Handle) -> bytes:
        said = await oci.exec(task, ["awk", "/^Cpus_allowed_list/ { print $2 }", "/proc/self/status"], timeout_s=30)
        return said.stdout.strip()

    updates: list[str] = []

    async def update(oci_task: Handle, task_id: str, resources: Resources) -> None:
        updates.append(task_id)
        await oci.update(oci_task, resources)

    cores = SharedCores(partial(update, task))
    cores.add("one", resources, cgroups.cpus(str(shared)))
    cores.add("other", Resources(cpuset_group=str(shared), cpuset_cpus="0"))
    await cores.check()
    assert (await cpus(task), updates) == (b"0-1", [])
    (shared / "cpuset.cpus").write_text("1")
    await cores.check()
    await cores.check()
    assert (await cpus(task), updates) == (b"1", ["one"])
    cores.drop("one")
    (shared / "cpuset.cpus").write_text("0-1")
    await cores.check()
    assert updates == ["one"]
    await cores.close()
    await oci.destroy(task)
