"""The sandbox profile of a container, in the language of sandbox-exec(1); every path is a parameter, so that none can end a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from zlayer_driver.model import Mount, TaskSpec

# What any program of macOS needs to start; «system.sb» is the system's own list, and the rest lets it see the system but no user's files.
_BASE = """(version 1)
(deny default)
(import "system.sb")
(allow process-fork)
(allow process-exec)
(allow signal (target same-sandbox))
(allow sysctl-read)
(allow mach-lookup)
(allow file-read-metadata)
(allow file-read*
  (literal "/")
  (subpath "/bin")
  (subpath "/sbin")
  (subpath "/usr")
  (subpath "/System")
  (subpath "/Library")
  (subpath "/opt")
  (subpath "/private/etc")
  (subpath "/private/var/db")
  (subpath "/dev"))
(allow file-write-data
  (literal "/dev/null")
  (literal "/dev/zero")
  (literal "/dev/tty"))
(allow file-read* file-write* (subpath (param "ROOTFS")))
"""
_NETWORK = "(allow network*)\n"


def profile(spec: TaskSpec) -> str:
    """All is forbidden but the system, the container's own files, its mounts, and the network where it has any."""
    mounts = [
        f'(allow file-read*{"" if mount.read_only else " file-write*"} (subpath (param "{name}")))\n'
        for name, mount in zip(_names(spec.mounts), spec.mounts, strict=True)
    ]
    return "".join([_BASE, *mounts, *((_NETWORK,) if spec.network.mode == "host" else ())])


def parameters(rootfs: Path, mounts: Sequence[Mount]) -> Mapping[str, str]:
    """A sandbox knows real paths only."""
    named = {name: str(Path(mount.source).resolve()) for name, mount in zip(_names(mounts), mounts, strict=True)}
    return {"ROOTFS": str(rootfs.resolve()), **named}


def _names(mounts: Sequence[Mount]) -> list[str]:
    return [f"MOUNT{number}" for number in range(len(mounts))]
