"""Running a further command in a container."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL

from zlayer_driver.backends.oci_bundle import Bundle
from zlayer_driver.backends.oci_runtime import Runtime, last_error
from zlayer_driver.backends.oci_users import resolve
from zlayer_driver.errors import InvalidSpec, NotFound
from zlayer_driver.host.pidfd import PidFd, identify
from zlayer_driver.host.processes import Completed, capture
from zlayer_driver.model import ExecResult, Exit
from zlayer_driver.readings import ExecOptions

_LIMIT = 16 << 20
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


async def execute(
    root: Path, bundle: Bundle, runtime: Runtime, argv: Sequence[str], *, timeout_s: float, options: ExecOptions
) -> ExecResult:
    """Output is kept up to 16 MiB a stream. A command that cannot be run is exit 127 or 126 with the runtime's reason on stderr, as in a shell."""
    if not argv or any("\0" in part for part in argv):
        raise InvalidSpec("a command to execute needs a name, and no NUL byte")
    files = _Files(bundle)
    try:
        files.process.write_text(json.dumps(_process(bundle, argv, options)))
        command = [runtime.path, *runtime.options(root, files.log), "exec", "--pid-file", str(files.pid), "--process", str(files.process)]
        done = await capture([*command, bundle.id], timeout_s=timeout_s, limit_bytes=_LIMIT)
        return _result(bundle, files, done)
    finally:
        files.end(bundle)


class _Files:
    """Three files of one exec, in the bundle so that they go with it at the latest."""

    def __init__(self, bundle: Bundle) -> None:
        base = bundle.dir / f"exec-{secrets.token_hex(6)}"
        self.process, self.pid, self.log = (base.with_suffix(suffix) for suffix in (".json", ".pid", ".log"))

    def end(self, bundle: Bundle) -> None:
        """The runtime's command may have been killed, which leaves the command in the container running."""
        with suppress(FileNotFoundError, ValueError):
            _kill(int(self.pid.read_text()), bundle.cgroup)
        for file in (self.process, self.pid, self.log):
            file.unlink(missing_ok=True)


def _process(bundle: Bundle, argv: Sequence[str], options: ExecOptions) -> dict[str, object]:
    """The container's own process with another command."""
    process = dict(json.loads(bundle.config.read_bytes())["process"])
    process["args"] = list(argv)
    process["env"] = [*process["env"], *(f"{name}={value}" for name, value in options.env.items())]
    if options.work_dir:
        process["cwd"] = options.work_dir
    if options.user:
        user = resolve(bundle.rootfs, options.user)
        process["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)}
    return process


def _result(bundle: Bundle, files: _Files, done: Completed) -> ExecResult:
    """Whether the command began is told by its pid file: what the runtime says in its stead is then no output of it."""
    if files.pid.exists():
        signal = -done.status if done.status < 0 else 0
        return ExecResult(Exit(128 + signal if signal else done.status, signal), done.stdout, done.stderr)
    reason = last_error(files.log)
    lowered = reason.lower()
    if "not found" in lowered or "no such file" in lowered:
        return ExecResult(Exit(_NOT_FOUND), b"", f"{reason}\n".encode())
    if "permission denied" in lowered:
        return ExecResult(Exit(_NOT_EXECUTABLE), b"", f"{reason}\n".encode())
    raise NotFound(bundle.id, f"no command can be executed in it: {reason or done.stderr.decode('utf-8', 'replace').strip()}")


def _kill(pid: int, cgroup: str) -> None:
    """Only what is in the container's group: the pid may be somebody else's by now."""
    process = identify(pid)
    pidfd = PidFd.open(process) if process else None
    if pidfd is None:
        return
    with pidfd, suppress(FileNotFoundError, ProcessLookupError):
        if cgroup in Path(f"/proc/{pid}/cgroup").read_text():
            pidfd.send(SIGKILL)
