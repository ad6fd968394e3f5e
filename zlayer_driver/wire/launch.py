"""How a host starts a plugin: Nomad's environment, the handshake line, and the log on stderr."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zlayer_driver.errors import DriverError, TimedOut
from zlayer_driver.wire.goplugin import APP_VERSION, COOKIE_NAME, COOKIE_VALUE, CORE_VERSION

START_TIMEOUT_S = 60.0
_MAX_LINE = 1 << 20
_NOMAD_ENV = {
    COOKIE_NAME: COOKIE_VALUE,
    "PLUGIN_MIN_PORT": "10000",
    "PLUGIN_MAX_PORT": "25000",
    "PLUGIN_PROTOCOL_VERSIONS": str(APP_VERSION),
}


@dataclass(frozen=True, slots=True)
class Started:
    """``logs`` grows while the plugin runs."""

    address: str
    pid: int
    exited: Callable[[], Awaitable[object]]
    logs: list[dict[str, Any]]


@contextlib.asynccontextmanager
async def plugin(argv: Sequence[str], env: Mapping[str, str]) -> AsyncIterator[Started]:
    """A process past its handshake; at the end it is killed if it still runs, and its log is read to the last line."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        env={**os.environ, **_NOMAD_ENV, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_MAX_LINE,
    )
    assert process.stdout is not None  # noqa: S101  # for the type checker: both are pipes
    assert process.stderr is not None  # noqa: S101  # as above
    logs: list[dict[str, Any]] = []
    reading = asyncio.create_task(_read_log(process.stderr, logs))
    try:
        line = await _first_line(process.stdout)
        if address := _address(line):
            yield Started(address, process.pid, process.wait, logs)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await reading
    if not address:
        said = "; ".join(str(entry.get("error") or entry.get("@message")) for entry in logs[-3:])
        raise DriverError(f"{argv[0]} is no plugin of this protocol: its first line is {line!r}, its last words are {said!r}")


async def _first_line(stdout: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            return await stdout.readline()
    except TimeoutError:
        raise TimedOut("the plugin's start", START_TIMEOUT_S) from None


def _address(line: bytes) -> str:
    """The socket path out of ``1|2|unix|<path>|grpc|``; empty for any other line."""
    fields = line.decode(errors="replace").rstrip("\n").split("|")
    fits = fields[:3] == [str(CORE_VERSION), str(APP_VERSION), "unix"] and fields[4:5] == ["grpc"]
    return fields[3] if fits else ""


async def _read_log(stderr: asyncio.StreamReader, logs: list[dict[str, Any]]) -> None:
    while raw := await stderr.readline():
        logs.append(_entry(raw.decode(errors="replace").rstrip("\n")))


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    return entry if isinstance(entry, dict) else {"@level": "debug", "@message": line}


async def gone(pid: int) -> None:
    """Returns when the process has ended; it need not be a child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
