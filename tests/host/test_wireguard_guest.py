"""The kernel's WireGuard by netlink, on a kernel that has it: that of a guest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.host.oci_lab import OneImage, shell
from tests.host.vm_lab import MACHINES, backend, handle, machines
from zlayer_driver.model import Mount, Resources, Security
from zlayer_driver.readings import ExecOptions, GuestOverlay

HERE = Path(__file__).parents[2]


@pytest.mark.needs(*MACHINES, "tc", "/usr/lib/qemu/virtiofsd")
@pytest.mark.timeout(400)
async def test_what_is_told_to_the_kernel_is_what_it_says(root: Path, images: OneImage) -> None:
    """The guest sees this machine's Python, and this checkout."""
    shared = dict.fromkeys(path for path in ("/usr", "/lib", "/lib64", sys.base_prefix, sys.prefix, str(HERE)) if Path(path).is_dir())
    mounts = tuple(Mount(target=path, source=path, read_only=True) for path in shared)
    vms = backend(root, images, machines(root))
    spec = shell(
        "vm", "sleep 1000", mounts=mounts, resources=Resources(memory_bytes=256 << 20), security=Security(cap_add=("CAP_NET_ADMIN",))
    )
    guest = handle("vm", await vms.start(spec))
    await vms.push_overlay(guest, GuestOverlay(address="10.9.0.8"))  # which loads the kernel's module
    options = ExecOptions(work_dir=str(HERE), env={"PYTHONDONTWRITEBYTECODE": "1"})
    said = await vms.exec(guest, [f"{sys.prefix}/bin/python", "-m", "tests.host.wireguard_talk"], timeout_s=300, options=options)
    await vms.destroy(guest)
    assert (said.exit.code, said.stderr.decode()) == (0, "")
