"""What ``container create`` is told of a task."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from zlayer_driver.backends.tool_spec import cpus
from zlayer_driver.errors import InvalidSpec
from zlayer_driver.model import Mount, TaskSpec

_LEAST_MIB = 200  # below it, a guest does not boot


def options(spec: TaskSpec) -> list[str]:
    return [part for flag, value in _options(spec) for part in (flag, *((value,) if value else ()))]


def _options(spec: TaskSpec) -> Iterator[tuple[str, str]]:
    yield "--cpus", str(cpus(spec.resources))
    if spec.resources.memory_bytes:
        yield "--memory", f"{max(_LEAST_MIB, spec.resources.memory_bytes >> 20)}M"
    yield from (("--user", spec.user),) if spec.user else ()
    yield from (("--workdir", spec.work_dir),) if spec.work_dir else ()
    yield from (("--init", ""),) if spec.init else ()
    yield from (("--read-only", ""),) if spec.security.readonly_rootfs else ()
    yield "--shm-size", f"{max(1, spec.shm_bytes >> 20)}M"
    for limit in spec.ulimits:
        yield "--ulimit", f"{limit.name}={_limit(limit.soft)}:{_limit(limit.hard)}"
    yield from (("--cap-add", name) for name in spec.security.cap_add)
    yield from (("--cap-drop", name) for name in spec.security.cap_drop)
    yield from (("--dns", server) for server in spec.network.dns_servers)
    yield from (("--dns-search", domain) for domain in spec.network.dns_searches)
    yield from (("--dns-option", option) for option in spec.network.dns_options)
    yield from map(_mount, spec.mounts)


def _limit(value: int | None) -> str:
    return "unlimited" if value is None else str(value)


def _mount(mount: Mount) -> tuple[str, str]:
    if "," in mount.source + mount.target:
        raise InvalidSpec(f"mount {mount.target!r}: container takes no path with a comma")
    if mount.kind == "tmpfs":
        size = f",size={max(1, mount.size_bytes >> 20)}M" if mount.size_bytes else ""
        mode = f",mode={mount.mode:o}" if mount.mode is not None else ""
        return "--mount", f"type=tmpfs,target={mount.target}{size}{mode}"
    return "--mount", f"type=bind,source={mount.source},target={mount.target}{',readonly' if mount.read_only else ''}"


def environment(env: Mapping[str, str], file: Path) -> list[str]:
    """In a file, for the list of processes is for all to see; what a line cannot hold has to be an argument."""
    lines = {name: value for name, value in env.items() if len(value.splitlines()) <= 1}
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as written:
        written.writelines(f"{name}={value}\n" for name, value in lines.items())
    return ["--env-file", str(file), *(part for name, value in env.items() if name not in lines for part in ("--env", f"{name}={value}"))]


def command(spec: TaskSpec) -> tuple[str, list[str]]:
    """An entrypoint, or nothing for the image's, and arguments."""
    given = [*((spec.command,) if spec.command else ()), *spec.args]
    first, *others = spec.entrypoint or ("",)
    return first, [*others, *given]
