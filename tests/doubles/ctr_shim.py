"""What the double of ctr has of containerd behind it: where it keeps what, its events, and the runhcs shim of a container."""

from __future__ import annotations

import os
import signal
import sys

from tests.doubles.double import HOME, begin, load, save, settle

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable
    from typing import NoReturn

    from tests.doubles.double import Doc

LOGGER_TIMEOUT_S = 10
CONTROL_C_EXIT = 0xC000013A  # how a Windows process ends that a control event ends
NO_FILE = "hcs::System::CreateProcess {}: The system cannot find the file specified.: unknown"


def fail(reason: str) -> NoReturn:
    sys.stderr.write(f"ctr: {reason}\n")
    sys.exit(1)


def emit(topic: str, event: Doc) -> None:
    import json  # noqa: PLC0415 # it costs half of a double's start

    line = f"2026-11-24 18:00:00.123456789 +0000 UTC zlayer {topic} {json.dumps(event)}\n".encode()
    for name in names(f"{HOME}/events"):
        try:
            fd = os.open(f"{HOME}/events/{name}", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody listens there any more
            continue
        os.write(fd, line)
        os.close(fd)


def read(path: str) -> str | None:
    try:
        with open(f"{HOME}/{path}") as file:  # noqa: PTH123 # pathlib costs half of a double's start
            return file.read()
    except FileNotFoundError:
        return None


def send(how: Callable[[int, int], None], pid: int, number: int) -> None:
    try:
        how(pid, number)
    except ProcessLookupError:
        return


def names(directory: str) -> list[str]:
    return [entry.name for entry in os.scandir(directory)]


def check_log_uri(text: str) -> list[str]:
    """The logging driver and its two arguments; hcsshim takes no scheme but this."""
    from urllib.parse import parse_qsl, unquote, urlsplit  # noqa: PLC0415 # as above

    uri = urlsplit(text)
    words = [unquote(uri.path), *(word for pair in parse_qsl(uri.query, strict_parsing=True) for word in pair)]
    if uri.scheme != "binary" or len(words) != 3 or not all(os.access(word, os.R_OK) for word in words):
        fail(f"scheme must be 'binary', got: '{text}'")
    return words


def create(image: str, name: str, command: list[str], log_uri: str, spec: Doc) -> None:
    if load(f"containers/{name}", None) is not None:
        fail(f'container "{name}": already exists')
    save(f"containers/{name}", {"image": image, "command": command, **spec})
    os.mkdir(f"{HOME}/tasks/{name}")  # noqa: PTH102 # as above
    reader, writer = os.pipe()
    beginning = begin(name)
    if os.fork() == 0:
        os.setsid()
        os.close(reader)
        shim(name, command, log_uri, spec, (writer, beginning))
    for fd in (writer, beginning):
        os.close(fd)
    with os.fdopen(reader) as told:
        if reason := told.read():
            fail(f"failed to create shim task: {reason}" if "logger" in reason else reason)


def shim(name: str, command: list[str], log_uri: str, spec: Doc, until_begun: tuple[int, int]) -> NoReturn:
    """Lives as long as the container: its logger is a child of ours, and how it ended is for `tasks delete` to tell."""
    import subprocess  # noqa: PLC0415 # as above

    directory, outcome = f"{HOME}/tasks/{name}", until_begun[0]
    silence = os.open("/dev/null", os.O_RDWR)
    for stream in range(3):
        os.dup2(silence, stream)
    logger, ends = start_logger(directory, name, log_uri, outcome)
    env = {"PATH": "/usr/bin:/bin", "DOUBLES": HOME, **spec["env"]}
    try:
        child = subprocess.Popen(command, stdout=ends[0], stderr=ends[1], env=env, cwd=spec["--cwd"] or "/", start_new_session=True)
    except OSError:
        os.write(outcome, NO_FILE.format(name).encode())
        os._exit(1)
    for end in ends:
        os.close(end)
    save(f"tasks/{name}/pid", child.pid)
    for fd in until_begun:
        os.close(fd)
    status = child.wait()
    for pid in [child.pid, *execs(name)]:
        send(os.killpg, pid, signal.SIGKILL)
    try:
        logger.wait(LOGGER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        logger.kill()
        logger.wait()
    code = status if status >= 0 else 1 if status == -signal.SIGKILL else CONTROL_C_EXIT
    save(f"tasks/{name}/exit", code)
    emit("/tasks/exit", {"container_id": name, "id": name, "pid": child.pid, "exit_status": code, "exited_at": {"seconds": 1}})
    os._exit(0)


def start_logger(directory: str, name: str, log_uri: str, outcome: int) -> tuple[subprocess.Popen[bytes], list[int]]:
    """As hcsshim's `NewBinaryIO`: the driver opens and closes the pipe CONTAINER_WAIT when it is ready."""
    import subprocess  # noqa: PLC0415 # as above

    pipes = {f"CONTAINER_{stream}": f"{directory}/{stream.lower()}" for stream in ("STDOUT", "STDERR", "WAIT")}
    for path in pipes.values():
        os.mkfifo(path)
    ends = [os.open(pipes[f"CONTAINER_{stream}"], os.O_RDWR) for stream in ("STDOUT", "STDERR")]
    env = {"CONTAINER_ID": name, "CONTAINER_NAMESPACE": "zlayer", **pipes}
    try:
        logger = subprocess.Popen(check_log_uri(log_uri), env=env)
    except OSError as error:
        os.write(outcome, f"failed to start binary logger: {error}".encode())
        os._exit(1)
    os.close(os.open(pipes["CONTAINER_WAIT"], os.O_RDONLY))
    return logger, ends


def execs(name: str) -> Iterable[int]:
    settle(name)
    return [process(name, file) for file in names(f"{HOME}/tasks/{name}") if file.startswith("exec-")]


def process(name: str, file: str) -> int:
    """Of a command whose ctr may have been killed while it began it; no process has the number that there is else."""
    settle(name)
    return int(read(f"tasks/{name}/{file}") or 0) or 1 << 30
