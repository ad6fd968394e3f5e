"""What ``ctr run`` is told for a task: flags, its environment in a file, and where its output goes."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from zlayer_driver.backends.hcs_images import SNAPSHOTTER, same_build
from zlayer_driver.backends.tool_spec import refuse_all_but
from zlayer_driver.errors import InvalidSpec
from zlayer_driver.model import ISOLATION_LABEL, Mount, Resources, TaskSpec

RUNTIME: Final = "io.containerd.runhcs.v1"
LOGGER: Final = Path(__file__).with_name("hcs_logs.py")
_ABLE: Final = ("user", "work_dir", "read-only mounts", "network mode")
_ISOLATED: Final = {"process": False, "sandbox": False, "hyperv": True, "vm": True}
_WEIGHT_OF_SHARES: Final = 10_000 / 1024  # a job's 1024 MHz shares are Windows' heaviest weight
_CPU_MAXIMUM: Final = 10_000  # in hundredths of a percent of all processors


def isolated(spec: TaskSpec, config: Mapping[str, Any], build: str) -> bool:
    """Whether in a Hyper-V VM: by the task's label ``com.zlayer.isolation``, else the image's, else as the two kernels demand.

    The words are ``process`` and ``hyperv``, or what of the node's choice of targets comes down to them here.
    """
    declared = (config.get("config") or {}).get("Labels") or {}
    for word in (spec.labels.get(ISOLATION_LABEL), declared.get(ISOLATION_LABEL)):
        if word and word.lower() in _ISOLATED:
            return _ISOLATED[word.lower()]
    return not same_build(str(config.get("os.version", "")), build)


def arguments(spec: TaskSpec, container: str, config: Mapping[str, Any], directory: Path, *, isolate: bool) -> list[str]:
    """Writes what ctr and the shim read from files into ``directory``: no value of a variable is in a command line."""
    refuse_all_but(spec, _ABLE, backend="hcs")
    if spec.network.mode == "path":
        raise InvalidSpec("a Windows container cannot join a network namespace of Linux", hint="take the network block out of the group")
    (directory / "env").write_text(_env_file(spec.env), encoding="utf-8")
    (directory / "logs.json").write_text(json.dumps([spec.stdout_path, spec.stderr_path]))
    return [
        *("run", "--detach", "--runtime", RUNTIME, "--snapshotter", SNAPSHOTTER, "--log-uri", log_uri(directory / "logs.json")),
        *("--env-file", str(directory / "env"), "--label", f"zlayer.task={spec.id}"),
        *(["--isolated"] if isolate else []),
        *(["--cni"] if spec.network.mode != "none" else []),
        *(["--cwd", spec.work_dir] if spec.work_dir else []),
        *(["--user", spec.user] if spec.user else []),
        *_limits(spec.resources),
        *(part for mount in spec.mounts for part in ("--mount", _mount(mount))),
        *(spec.image, container, *_command(spec, config.get("config") or {})),
    ]


def log_uri(file: Path) -> str:
    """The shim makes two arguments of one parameter; of several the order would be lost."""
    program = quote(Path(sys.executable).as_posix().lstrip("/"), safe="/:")
    return f"binary:///{program}?{urlencode({LOGGER.as_posix(): file.as_posix()})}"


def _env_file(env: Mapping[str, str]) -> str:
    if split := [name for name, value in env.items() if any(char in name + value for char in "\r\n\0")]:
        raise InvalidSpec(f"variables of several lines cannot be passed to a Windows container: {', '.join(sorted(split))}")
    return "".join(f"{name}={value}\n" for name, value in env.items())


def _limits(resources: Resources) -> list[str]:
    found = []
    if resources.memory_bytes:
        found += ["--memory-limit", str(resources.memory_bytes)]
    if resources.cpu_fraction:
        found += ["--cpu-max", str(min(_CPU_MAXIMUM, max(1, round(resources.cpu_fraction * _CPU_MAXIMUM))))]
    elif resources.cpu_shares:
        found += ["--cpu-shares", str(min(_CPU_MAXIMUM, max(1, round(resources.cpu_shares * _WEIGHT_OF_SHARES))))]
    return found


def _mount(mount: Mount) -> str:
    """The fields of a CSV line, so that a path may hold commas and quotes."""
    line = io.StringIO()
    access = "ro" if mount.read_only else "rw"
    csv.writer(line, lineterminator="").writerow(
        ["type=bind", f"src={mount.source}", f"dst={mount.target}", f"options=rbind:{access}"],
    )
    return line.getvalue()


def _command(spec: TaskSpec, config: Mapping[str, Any]) -> Sequence[str]:
    """As Docker has it; nothing where it is the image's own, which ctr then takes from the image itself."""
    if spec.entrypoint is None and not spec.command and not spec.args:
        return ()
    entrypoint = (config.get("Entrypoint") or ()) if spec.entrypoint is None else spec.entrypoint
    return [*entrypoint, *([spec.command] if spec.command else []), *spec.args]
