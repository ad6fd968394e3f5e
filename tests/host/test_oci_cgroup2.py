"""The OCI backend where there are no control groups but those of v2, which this machine need not be: its own programs and files, in a guest."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

import zlayer_driver
from tests.host.oci_lab import IMAGE, OneImage
from tests.host.vm_lab import MACHINES, backend, handle, machines
from zlayer_driver.model import Exit, Mount, Network, Resources, Security, TaskSpec

CHECKOUT = Path(zlayer_driver.__file__).parents[1]
DEADLINE_S = 200.0


class NodeImage(OneImage):
    """Of nothing but links: all that is in their places is the machine's own."""

    def fill(self) -> None:
        base, top = self.image.layers
        base.mkdir()
        top.mkdir()
        for name in ("bin", "sbin", "lib", "lib64"):
            (base / name).symlink_to(f"usr/{name}")
        (base / "tmp").mkdir()


@pytest.mark.needs(*MACHINES, "runc", "crun")
@pytest.mark.timeout(300)
async def test_lives_of_containers_on_a_node_of_cgroup_v2(root: Path, images: OneImage, tmp_path: Path) -> None:
    image = NodeImage(tmp_path / "node")
    image.root.mkdir()
    image.fill()
    seen = {Path(path).resolve() for path in ("/usr", CHECKOUT, images.root, sys.prefix, sys.base_prefix)}
    shared = [str(path) for path in seen if seen.isdisjoint(path.parents)]
    spec = TaskSpec(
        id="node",
        name="node",
        image=IMAGE,
        command=sys.executable,
        args=("-B", "-m", "tests.host.cgroup2_node", str(images.root), "/state"),
        work_dir=str(CHECKOUT),
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        mounts=(
            *(Mount(target=path, source=path, read_only=True) for path in shared),
            Mount(target="/state", kind="tmpfs"),
            Mount(target="/run", kind="tmpfs"),
        ),
        resources=Resources(memory_bytes=512 << 20, cpu_quota_us=200_000),
        security=Security(privileged=True),
        network=Network(mode="none"),
        stdout_path=str(root / "said"),
        stderr_path=str(root / "said"),
    )
    vms = backend(root, image, machines(tmp_path))
    task = handle("node", await vms.start(spec))
    async with asyncio.timeout(DEADLINE_S):
        end = await vms.wait(task)
    await vms.destroy(task)
    assert end == Exit(0), (root / "said").read_text()
