"""The plugin's unix socket: where it lies, who may open it, and what becomes of those that killed plugins left behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from zlayer_driver.errors import ConfigError

_PREFIX = "zlayer-plugin"
_MAX_PATH = 103  # bytes; the smallest sun_path among the systems that this runs on, with its NUL


def home(env: Mapping[str, str]) -> Path:
    """Where sockets lie: go-plugin's ``PLUGIN_UNIX_SOCKET_DIR``, else the temporary directory."""
    return Path(env.get("PLUGIN_UNIX_SOCKET_DIR") or tempfile.gettempdir()).absolute()


def choose(env: Mapping[str, str]) -> Path:
    """A fresh path, whose name tells the process."""
    path = home(env) / f"{_PREFIX}-{os.getpid()}-{secrets.token_hex(4)}.sock"
    if len(os.fsencode(path)) > _MAX_PATH:
        raise ConfigError(f"socket path {str(path)!r} is longer than {_MAX_PATH} bytes", hint="set TMPDIR to a shorter directory")
    return path


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Sockets bound inside are their owner's alone from the first moment."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def share(path: Path, env: Mapping[str, str]) -> None:
    """Opens the socket to ``PLUGIN_UNIX_SOCKET_GROUP`` (a name or a number), if the host asks for it."""
    if group := env.get("PLUGIN_UNIX_SOCKET_GROUP"):
        shutil.chown(path, group=int(group) if group.isdecimal() else group)
        path.chmod(0o660)


def sweep(directory: Path) -> None:
    """Removes the sockets of plugins that were killed: those whose process is gone and that refuse a connection."""
    for path in directory.glob(f"{_PREFIX}-*-*.sock"):
        pid = path.name.split("-")[2]
        if pid.isdecimal() and not _alive(int(pid)) and path.is_socket() and _refuses(path):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # anybody may have put a file there whose number no process can have
        return False
    except PermissionError:
        pass
    return True


def _refuses(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
