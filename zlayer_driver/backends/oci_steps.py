"""The steps of a container of an OCI runtime: the shared ones, and a runtime's own state taken away."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from zlayer_driver.backends.oci_runtime import GVISOR, OciRuntime
from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.backends.supervised.making import Making
from zlayer_driver.backends.supervised.steps import CONFIG, CONTAINER, DIRECTORY, ROOTFS, RUN, SUPERVISOR, end_processes, erase
from zlayer_driver.host import cgroups


async def _hold(making: Making) -> None:
    """Not for gVisor, whose command line is told by the config."""
    if making.runtime.kind != GVISOR:
        await SUPERVISOR.do(making)


async def _create(making: Making) -> None:
    (making.bundle.root / "rt").mkdir(0o700, exist_ok=True)
    await CONTAINER.do(making)


async def _remove(bundle: Bundle) -> None:
    """The runtime's own removal may fail: what it would remove is removed after it, and a runtime may be gone from the node."""
    await end_processes(bundle)
    record = bundle.record()
    for state in _states(bundle):
        if state.is_dir() and (path := shutil.which(record.runtime if record else state.parent.name)):
            await OciRuntime(path, record.kind if record else "").run(bundle, "delete", "--force", bundle.id)
        await erase(state)
    await cgroups.remove(bundle.cgroup)


def _states(bundle: Bundle) -> list[Path]:
    """What runtimes keep of it: a directory, or files of one sandbox with one container, as gVisor names them.

    No pattern has its name: `re` keeps each that it has compiled, and no two containers are named alike.
    """
    sandbox = f"{bundle.id}_sandbox:{bundle.id}."
    return [path for path in (bundle.root / "rt").glob("*/*") if path.name == bundle.id or path.name.startswith(sandbox)]


STEPS = (DIRECTORY, replace(SUPERVISOR, do=_hold), ROOTFS, CONFIG, replace(CONTAINER, do=_create, undo=_remove), RUN)
