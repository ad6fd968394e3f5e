"""The lazy table of backends: what stands behind each target on each kind of node.

A backend's module is imported when a node has a use for it; a module that fails to import is an error with its name, never a backend
that is quietly missing.

An operator may name another backend for a target (config keys ``primary``, ``delegate``, ``vz``, ``vz_linux``): one of `NAMED`, or one that
an installed package has registered, as an entry point of the group ``zlayer_driver.backends`` whose object is an `Entry`. Packages are
looked through only when such a name is to be found.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zlayer_driver.config import PluginConfig
from zlayer_driver.contract import VERBS, Backend
from zlayer_driver.errors import ConfigError, DriverError, InternalError
from zlayer_driver.model import OS, Target

if TYPE_CHECKING:
    from zlayer_driver.image.store import ImageStore  # needs POSIX, which a backend for Windows must do without

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


NAMED: Mapping[str, Entry] = {name: Entry(OS.LINUX, Target.PRIMARY, "zlayer_driver.backends.engine") for name in ("podman", "docker")}
GROUP = "zlayer_driver.backends"


def build(context: Context) -> dict[Target, Backend]:
    """The backends of this node, made but not probed. One that the node plainly cannot run is left out, so that nothing is sent to it.

    `ConfigError` or `InternalError`, with its name, for one that the operator named and that cannot be had.
    """
    rows = {entry.target: entry for entry in TABLE if entry.native_os is context.native_os}
    rows |= {target: _named(name, target, context.native_os) for target in Target if (name := _name_of(target, context.config))}
    return {target: _made(entry, context) for target, entry in rows.items() if not _missing(entry, context.config)}


def faults() -> dict[str, str]:
    """Of each backend that installed packages register: what is wrong with it, empty if nothing is."""
    found = {}
    for name in sorted(entry_points(group=GROUP).names):
        try:
            if name in NAMED:
                raise ConfigError(f"backend {name!r} of {_owners(entry_points(group=GROUP, name=name))} has the name of one of our own")
            _member(_installed(name), "make")
            found[name] = ""
        except DriverError as error:
            found[name] = str(error)
    return found


def _name_of(target: Target, config: PluginConfig) -> str:
    """The backend that the operator named for a target; empty: none."""
    return str(getattr(config, target))


def _named(name: str, target: Target, native_os: OS) -> Entry:
    entry = NAMED.get(name) or _installed(name)
    if (entry.target, entry.native_os) != (target, native_os):
        raise ConfigError(
            f"backend {name!r} cannot be {target} of a {native_os} node: it is {entry.target} of {entry.native_os} nodes",
            hint=f"take it out of {target} in the plugin's config",
        )
    return entry


def _installed(name: str) -> Entry:
    """What a package has registered under this name."""
    found = entry_points(group=GROUP, name=name)
    if not found:
        known = ", ".join(sorted({*NAMED, *entry_points(group=GROUP).names}))
        raise ConfigError(f"there is no backend {name!r}", hint=f"install the package that has it, or name one of these: {known}")
    if len(found) > 1:
        raise ConfigError(f"backend {name!r} is registered by {_owners(found)}", hint="remove all but one of these packages")
    (point,) = found
    try:
        entry = point.load()
    except Exception as error:  # the code of others may fail in any way, and must not take the node with it
        raise ConfigError(
            f"backend {name!r} of {_owners(found)} cannot be loaded: {type(error).__name__}: {error}", hint="mend or remove the package"
        ) from error
    if not isinstance(entry, Entry):
        raise ConfigError(
            f"backend {name!r} of {_owners(found)} is a {type(entry).__name__}, not an Entry", hint="mend or remove the package"
        )
    return entry


def _owners(points: Iterable[EntryPoint]) -> str:
    return " and ".join(sorted(f"package {point.dist.name}" if point.dist else point.value for point in points))


def _made(entry: Entry, context: Context) -> Backend:
    backend: Backend = _member(entry, "make")(context)
    if missing := [verb for verb in VERBS if not hasattr(backend, verb)]:
        raise InternalError(f"backend module {entry.module} makes a {type(backend).__name__} without {', '.join(missing)}")
    return backend


def absence(target: Target, config: PluginConfig) -> str:
    """Why this node has nothing behind ``target``, and what to do about it."""
    if name := _name_of(target, config):
        return _missing(_named(name, target, native_os()), config)
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
    except Exception as error:  # a module of a package may fail in any way, and must not take the node with it
        raise InternalError(f"backend module {entry.module} cannot be loaded: {error}", hint="reinstall the package that has it") from error
