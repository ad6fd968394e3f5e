"""The lazy table of backends: what stands behind each target on each kind of node.

A backend's module is imported when a node has a use for it; a module that fails to import is an error with its name, never a backend
that is quietly missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from zlayer_driver.config import PluginConfig
from zlayer_driver.contract import Backend
from zlayer_driver.errors import InternalError
from zlayer_driver.image.store import ImageStore
from zlayer_driver.model import OS, Target

_NATIVE = {"linux": OS.LINUX, "darwin": OS.DARWIN, "win32": OS.WINDOWS}


@dataclass(frozen=True, slots=True)
class Context:
    """What a backend is made from: the operator's config and the image store of this state directory."""

    config: PluginConfig
    store: ImageStore

    @property
    def state_dir(self) -> Path:
        return Path(self.config.state_dir)


class Factory(Protocol):
    """The function ``make`` of a backend's module."""

    def __call__(self, context: Context) -> Backend: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table: on nodes of ``native_os``, ``module`` stands behind ``target``."""

    native_os: OS
    target: Target
    module: str


TABLE: Sequence[Entry] = (Entry(OS.LINUX, Target.PRIMARY, "zlayer_driver.backends.oci"),)


def native_os() -> OS:
    """The operating system of this node."""
    return _NATIVE.get(sys.platform, OS.LINUX)


def build(context: Context) -> dict[Target, Backend]:
    """The backends of this node, made but not probed."""
    return {entry.target: _load(entry.module)(context) for entry in TABLE if entry.native_os is native_os()}


def absence(target: Target) -> str:
    """Why this node has nothing behind ``target``, and what to do about it."""
    kinds = sorted(entry.native_os for entry in TABLE if entry.target is target)
    if not kinds:
        return f"no backend of this version stands behind {target}"
    return f"{target} is for {' and '.join(kinds)} nodes, and this is a {native_os()} node"


def _load(module: str) -> Factory:
    try:
        return cast("Factory", cast("Any", import_module(module)).make)
    except (ImportError, AttributeError) as error:
        raise InternalError(f"backend module {module} cannot be loaded: {error}", hint="reinstall zlayer-driver") from error
