"""The lazy table of backends: what stands behind each target on each kind of node.

A backend's module is imported when a node has a use for it; a module that fails to import is an error with its name, never a backend
that is quietly missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from zlayer_driver.config import PluginConfig
from zlayer_driver.contract import Backend
from zlayer_driver.errors import InternalError
from zlayer_driver.image.store import ImageStore
from zlayer_driver.model import OS, Target

_NATIVE = {"linux": OS.LINUX, "darwin": OS.DARWIN, "win32": OS.WINDOWS}


def native_os() -> OS:
    """The operating system of this node."""
    return _NATIVE.get(sys.platform, OS.LINUX)


@dataclass(frozen=True, slots=True)
class Context:
    """What a backend is made from: the operator's config, the image store of this state directory, and what kind of node this is."""

    config: PluginConfig
    store: ImageStore
    native_os: OS = field(default_factory=native_os)

    @property
    def state_dir(self) -> Path:
        return Path(self.config.state_dir)


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table: on nodes of ``native_os``, ``module`` stands behind ``target``.

    The module has ``make(context) -> Backend``, and, but for a primary, ``missing(config) -> str``: what it needs and the node lacks.
    """

    native_os: OS
    target: Target
    module: str


TABLE: Sequence[Entry] = (
    Entry(OS.LINUX, Target.PRIMARY, "zlayer_driver.backends.oci"),
    Entry(OS.LINUX, Target.DELEGATE, "zlayer_driver.backends.vm"),
    Entry(OS.DARWIN, Target.PRIMARY, "zlayer_driver.backends.seatbelt"),
    Entry(OS.DARWIN, Target.DELEGATE, "zlayer_driver.backends.krun"),
    Entry(OS.DARWIN, Target.VZ, "zlayer_driver.backends.vz"),
    Entry(OS.DARWIN, Target.VZ_LINUX, "zlayer_driver.backends.vz_linux"),
    Entry(OS.WINDOWS, Target.PRIMARY, "zlayer_driver.backends.hcs"),
    Entry(OS.WINDOWS, Target.DELEGATE, "zlayer_driver.backends.wsl2"),
)


def build(context: Context) -> dict[Target, Backend]:
    """The backends of this node, made but not probed. One that the node plainly cannot run is left out, so that nothing is sent to it."""
    rows = [entry for entry in TABLE if entry.native_os is context.native_os]
    return {entry.target: _member(entry, "make")(context) for entry in rows if not _missing(entry, context.config)}


def absence(target: Target, config: PluginConfig) -> str:
    """Why this node has nothing behind ``target``, and what to do about it."""
    for entry in TABLE:
        if entry.target is target and entry.native_os is native_os():
            return _missing(entry, config)
    kinds = sorted(entry.native_os for entry in TABLE if entry.target is target)
    if not kinds:
        return f"no backend of this version stands behind {target}"
    return f"{target} is for {' and '.join(kinds)} nodes, and this is a {native_os()} node"


def _missing(entry: Entry, config: PluginConfig) -> str:
    """What the backend needs and this node lacks, with the cure. The primary is always there: without it there is no node."""
    return "" if entry.target is Target.PRIMARY else str(_member(entry, "missing")(config))


def _member(entry: Entry, name: str) -> Any:
    try:
        return getattr(import_module(entry.module), name)
    except (ImportError, AttributeError) as error:
        raise InternalError(f"backend module {entry.module} cannot be loaded: {error}", hint="reinstall zlayer-driver") from error
