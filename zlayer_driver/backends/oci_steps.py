"""The steps of a container of an OCI runtime: the shared ones, and a runtime's own state taken away."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from zlayer_driver.backends.oci_runtime import GVISOR
from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.backends.supervised.making import Making
from zlayer_driver.backends.supervised.steps import CONFIG, CONTAINER, DIRECTORY, ROOTFS, RUN, SUPERVISOR, remove_container


async def _hold(making: Making) -> None:
    """Not for gVisor, whose command line is told by the config."""
    if making.runtime.kind != GVISOR:
        await SUPERVISOR.do(making)


async def _create(making: Making) -> None:
    (making.bundle.root / "rt").mkdir(0o700, exist_ok=True)
    await CONTAINER.do(making)


async def _remove(bundle: Bundle) -> None:
    """What a runtime's own `delete` does, without loading the runtime again: it may be gone from the node, and costs as much as a start."""
    await remove_container(bundle)
    for state in _states(bundle):
        if state.is_dir():
            shutil.rmtree(state)
        else:
            state.unlink()


def _states(bundle: Bundle) -> list[Path]:
    """What runtimes keep of it: a directory, or files of one sandbox with one container, as gVisor names them.

    No pattern has its name: `re` keeps each that it has compiled, and no two containers are named alike.
    """
    sandbox = f"{bundle.id}_sandbox:{bundle.id}."
    return [path for path in (bundle.root / "rt").glob("*/*") if path.name == bundle.id or path.name.startswith(sandbox)]


STEPS = (DIRECTORY, replace(SUPERVISOR, do=_hold), ROOTFS, CONFIG, replace(CONTAINER, do=_create, undo=_remove), RUN)
