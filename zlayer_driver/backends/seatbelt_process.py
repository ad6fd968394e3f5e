"""The process of a sandboxed container, which has the node's paths for its own."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from zlayer_driver.backends.supervised.spec import command_line, environment
from zlayer_driver.backends.tool_job import Command
from zlayer_driver.backends.tool_spec import moved
from zlayer_driver.errors import InvalidSpec, StartFailed
from zlayer_driver.host import signals
from zlayer_driver.image.values import ImageConfig
from zlayer_driver.model import TaskSpec
from zlayer_driver.readings import ExecOptions

_SPENT = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")
ROOTFS = "ZLAYER_ROOTFS"


def describe(spec: TaskSpec, image: ImageConfig, rootfs: Path) -> Command:
    """`StartFailed` for a command that neither the image nor the node has."""
    env = dict(entry.split("=", 1) for entry in environment(spec, image, str(rootfs)))
    env = moved(env, {mount.target: mount.source for mount in spec.mounts})
    env |= {ROOTFS: str(rootfs), "PATH": _path(env["PATH"], rootfs)}
    argv = command_line(spec, image)
    program = found(argv[0], env["PATH"], rootfs)
    if program is None:
        raise StartFailed(spec.id, f"command {argv[0]!r} is neither in image {spec.image!r} nor on this node")
    stop_signal = "SIGTERM"
    with suppress(InvalidSpec):
        stop_signal = str(signals.number(image.stop_signal))
    return Command(
        argv=[program, *argv[1:]],
        client=False,
        env=env,
        cwd=_below(rootfs, spec.work_dir or image.work_dir or "/"),
        stop_signal=stop_signal,
        **user(spec.user or image.user),
    )


def entered(doc: Mapping[str, Any], rootfs: Path, argv: Sequence[str], told: ExecOptions) -> dict[str, Any]:
    """A further command: the container's own document, in the same sandbox, with another command line."""
    env = {**doc["env"], **told.env}
    program = found(argv[0], env["PATH"], rootfs) or argv[0]
    as_user = user(told.user) if told.user else {}
    cwd = _below(rootfs, told.work_dir) if told.work_dir else doc["cwd"]
    return {**doc, **as_user, "env": env, "cwd": cwd, "argv": [*_sandbox(doc["argv"]), program, *argv[1:]]}


def _sandbox(argv: Sequence[str]) -> Sequence[str]:
    """The part of a container's command line that comes before its program."""
    end = argv.index("-f") + 2
    while argv[end] == "-D":
        end += 2
    return argv[:end]


def found(name: str, path: str, rootfs: Path) -> str | None:
    """The program of that name: of the image, else of the node."""
    if not name.startswith("/"):
        return shutil.which(name, path=path)
    return next((str(place) for place in (Path(_below(rootfs, name)), Path(name)) if os.access(place, os.X_OK)), None)


def _path(text: str, rootfs: Path) -> str:
    """The image's directories before the node's of the same names."""
    given = [part for part in text.split(os.pathsep) if part.startswith("/")]
    return os.pathsep.join([*(_below(rootfs, part) for part in given), *given])


def _below(rootfs: Path, path: str) -> str:
    """Where the container's ``path`` is; what only the node has stays the node's."""
    if not path.startswith("/"):
        raise InvalidSpec(f"{path!r} is not an absolute path")
    inside = rootfs / os.path.normpath(path).lstrip("/")
    return str(inside if inside.exists() or not Path(path).exists() else path)


def user(text: str) -> dict[str, Any]:
    """Numbers for a user of the node's, as ``name``, ``uid`` or either with ``:group``; of nobody named, the driver's own."""
    if not text:
        return {}
    name, _, group = text.partition(":")
    try:
        row = None if name.isdecimal() else pwd.getpwnam(name)
        gid = row.pw_gid if row else int(name)
        if group:
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise InvalidSpec(f"user {text!r}: this node does not know it", hint="use a user of the node, or a number") from error
    groups = os.getgrouplist(name, gid) if row else [gid]
    return {"user": row.pw_uid if row else int(name), "group": gid, "extra_groups": groups}


def seconds(text: str) -> float:
    """CPU time as ps(1) writes it: ``[[days-]hours:]minutes:seconds``, with hundredths on macOS."""
    if (parts := _SPENT.fullmatch(text)) is None:
        return 0.0
    days, hours, minutes = (int(part or 0) for part in parts.group(1, 2, 3))
    return ((days * 24 + hours) * 60 + minutes) * 60 + float(parts[4])
