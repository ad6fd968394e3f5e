"""What the tests of the OCI backend share: an image made of busybox, task specs, and a look at what is left behind."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from zlayer_driver.backends.oci import OciBackend
from zlayer_driver.backends.oci_runtimes import Runtimes
from zlayer_driver.backends.oci_steps import STEPS
from zlayer_driver.backends.supervised.bundle import Bundle, container_id
from zlayer_driver.backends.supervised.making import Step, remove
from zlayer_driver.errors import NotFound
from zlayer_driver.host import cgroups
from zlayer_driver.host.processes import command_lines
from zlayer_driver.image.values import Image, ImageConfig
from zlayer_driver.model import Auth, Handle, ImageRecord, PullPolicy, Report, Target, TaskSpec
from zlayer_driver.readings import Pruned

RUNTIME = os.environ.get("ZLAYER_TEST_RUNTIME", "runc")
IMAGE = "example.org/busybox:1"
APPLETS = (
    "sh",
    "sleep",
    "cat",
    "ls",
    "true",
    "id",
    "env",
    "pwd",
    "mount",
    "awk",
    "dd",
    "kill",
    "touch",
    "test",
    "nproc",
    "hostname",
    "df",
    "mkdir",
    "stty",
    "tty",
    "grep",
    "readlink",
    "cut",
    "sort",
)


class OneImage:
    """An image store with one image, whose layers lie below ``root``."""

    def __init__(self, root: Path, **config: Any) -> None:
        self.root = root
        shown = ImageConfig(**{"os": "linux", "arch": "amd64", "diff_ids": (), "cmd": ("/bin/sh",), "env": ("PATH=/bin",)} | config)
        self.image = Image(IMAGE, "sha256:" + "0" * 64, shown, (root / "base", root / "top"), 0)

    def fill(self) -> None:
        base, top = self.image.layers
        for directory in ("bin", "etc", "tmp", "proc", "dev", "sys"):
            (base / directory).mkdir(parents=True)
        shutil.copy2("/bin/busybox", base / "bin/busybox")
        for applet in APPLETS:
            (base / "bin" / applet).symlink_to("busybox")
        (base / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nworker:x:1000:1001::/home/worker:/bin/sh\n")
        (base / "etc/group").write_text("root:x:0:\nworkers:x:1001:\naudio:x:29:worker\nlogs:x:30:someone,worker\n")
        (top / "srv").mkdir(parents=True)
        (top / "srv/mark").write_text("upper layer\n")

    def hold(self) -> AbstractContextManager[None]:
        return nullcontext()

    def get(self, image: str) -> Image:
        if image != IMAGE:
            raise NotFound(image, "it was never pulled")
        return self.image

    def list(self) -> Sequence[ImageRecord]:
        return [ImageRecord(IMAGE)]

    async def pull(self, image: str, *, policy: PullPolicy, auth: Auth | None, report: Report | None = None) -> Image:
        return self.get(image)

    async def tag(self, source: str, target: str) -> Image:
        raise NotImplementedError  # no test of a backend changes images

    async def remove(self, image: str) -> None:
        raise NotImplementedError  # as above

    async def remove_unused(self) -> Pruned:
        return Pruned()


def backend(root: Path, images: OneImage, *, runtime: str = RUNTIME, steps: tuple[Step, ...] = STEPS) -> OciBackend:
    return OciBackend(root=root / "state", store=images, runtimes=Runtimes(runtime), steps=steps)


def shell(task_id: str, script: str, **changes: object) -> TaskSpec:
    spec = TaskSpec(id=task_id, name="task", image=IMAGE, command="/bin/sh", args=("-c", script))
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]  # the fields' own types are checked where they are used


def handle(task_id: str, data: object) -> Handle:
    return Handle(task_id, Target.PRIMARY, "oci", data if isinstance(data, dict) else {})


def remains(root: Path) -> list[str]:
    """Everything that lives for a container of a state directory in ``root``: processes, mounts, cgroups, files."""
    found = [f"process {pid}: {argv}" for pid, argv in command_lines() if any(part.startswith(bytes(root)) for part in argv)]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(root) in line]
    for state in (root / "state", root / "state/oci"):
        prefix = Bundle(state, "").cgroup.strip("/")
        found += [str(group) for tree in cgroups.trees().roots() for group in tree.iterdir() if group.name.startswith(prefix)]
        found += [str(path) for kind in ("c/*", "rt/*/*") for path in state.glob(kind)]
    return found


async def clear(root: Path) -> list[str]:
    """What `remains`, and an end to it: a test that fails in the middle must not burden the machine."""
    found = remains(root)
    for path in [*root.glob("state/c/*"), *root.glob("state/oci/c/*")]:
        state = path.parent.parent
        await remove(Bundle(state, path.name), STEPS)
    return found


def bundle_of(root: Path, task_id: str) -> Bundle:
    return Bundle(root / "state", container_id(task_id))
