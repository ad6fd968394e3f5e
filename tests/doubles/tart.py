"""A double of tart 2.32; what runs in a machine runs on this system, with the machine's own home directory.

Images are files of ``$DOUBLES/images``. With ``$DOUBLES/full``, no machine starts; with a FIFO
``$DOUBLES/boots-for-ever``, which tells its reader when it does, none is ever up.
"""

from __future__ import annotations

import os
import sys
import time

from tests.doubles.double import HOME, Doc, load, parse, play, save, tell, usage, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

LEAST_MIB = 4096
POLL_S = 0.01


def fail(message: str, status: int = 1) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    sys.exit(status)


def machine_of(name: str) -> Doc:
    found: Doc | None = load(f"tart-{name}", None)
    if found is None:
        fail(f'the specified VM "{name}" does not exist', 2)
    return found


def image_file(image: str) -> str:
    return f"images/{image.replace('/', '_')}"


def running(name: str) -> int:
    """The pid of its ``tart run``, 0 without one."""
    pid = int(load(f"run-{name}", 0))
    try:
        os.kill(pid, 0)
    except OSError:
        return 0
    return pid


def pull(argv: list[str]) -> None:
    found, (image,) = parse(argv, flags={"--insecure"}, least=1, most=1)
    loopback = image.startswith(("127.0.0.1", "localhost"))
    if loopback and "--insecure" not in found:
        fail("Error: a TLS error caused the secure connection to fail")
    if not loopback and "--insecure" in found:
        usage("a registry on the internet is never asked in the clear")
    if load(image_file(image), None) is None:
        fail("Error: unexpected HTTP status code 404")
    if (login := load("tart.login", None)) and login != {key: os.environ.get(key) for key in login}:
        fail("Error: unexpected HTTP status code 401")
    save("tart.oci", sorted({*load("tart.oci", []), image}))


def clone(argv: list[str]) -> None:
    _, (image, name) = parse(argv, least=2, most=2)
    if "/" in name:
        usage("<new-name> should be a local name")
    if load(image_file(image), None) is None:
        fail("Error: unexpected HTTP status code 404")
    save(f"tart-{name}", {"CPU": 4, "Memory": LEAST_MIB, "OS": "darwin", "State": "stopped"})


def get(argv: list[str]) -> None:
    found, (name,) = parse(argv, options={"--format"}, least=1, most=1)
    if found.get("--format") != "json":
        usage("only JSON can be read by a program")
    tell(machine_of(name))


def set_(argv: list[str]) -> None:
    found, (name,) = parse(argv, options={"--cpu", "--memory"}, least=1, most=1)
    machine = machine_of(name) | {"CPU": whole(found["--cpu"], 64), "Memory": whole(found["--memory"])}
    if machine["Memory"] < LEAST_MIB:
        fail(f"Error: VM should have at least {LEAST_MIB} megabytes of memory")
    save(f"tart-{name}", machine)


def run(argv: list[str]) -> None:
    import signal  # noqa: PLC0415 # it takes as long to load as all else

    found, (name,) = parse(argv, flags={"--no-graphics", "--no-audio", "--no-clipboard"}, repeated={"--dir"}, least=1, most=1)
    machine = machine_of(name)
    if "--no-graphics" not in found:
        fail("Error: there is no window server to open a window on")
    shares = dict(map(share, found["--dir"]))
    if load("full", None):
        fail("The number of VMs exceeds the system limit")
    if os.access(fifo := f"{HOME}/boots-for-ever", os.F_OK):
        os.close(os.open(fifo, os.O_WRONLY))
        signal.pause()
    save(f"tart-{name}", machine | {"shares": shares, "audio": "--no-audio" not in found, "clipboard": "--no-clipboard" not in found})
    os.makedirs(f"{HOME}/guest-{name}", exist_ok=True)  # noqa: PTH103 # pathlib costs half of a double's start
    save(f"run-{name}", os.getpid())
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


def share(text: str) -> tuple[str, str]:
    name, colon, rest = text.partition(":")
    path, _, option = rest.partition(":")
    if not colon or not os.path.isdir(path) or option not in ("", "ro"):  # noqa: PTH112 # as above
        usage(f"'{text}' is no directory share")
    return name, rest


def ip(argv: list[str]) -> None:
    found, (name,) = parse(argv, options={"--wait", "--resolver"}, least=1, most=1)
    if found.get("--resolver", "dhcp") not in ("dhcp", "arp", "agent"):
        usage(f"'{found['--resolver']}' is no resolver")
    until = time.monotonic() + whole(found.get("--wait", "1"), 65535)
    machine_of(name)
    while not running(name):
        if time.monotonic() > until:
            fail("no IP address found, is your VM running?")
        time.sleep(POLL_S)
    tell("192.168.64.7")


def exec_(argv: list[str]) -> None:
    found, (name, *command) = parse(argv, flags={"-i", "-t"}, least=2, stop_at=1)
    machine_of(name)
    if not running(name):
        fail(f'VM "{name}" is not running', 2)
    if "-t" in found and not os.isatty(0):
        fail("Fatal error: 'try!' expression unexpectedly raised an error", 133)
    if "-t" not in found and os.isatty(0):
        usage("without -t the command has no terminal, whoever calls has one")
    if "-i" not in found:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    home = f"{HOME}/guest-{name}"
    os.chdir(home)
    try:
        os.execve(command[0], command, {"HOME": home, "PATH": os.environ["PATH"], "DOUBLES": HOME})  # it becomes it
    except OSError as error:
        fail(f"{command[0]}: {error.strerror}")


def list_(argv: list[str]) -> None:
    found, _ = parse(argv, options={"--source", "--format"}, most=0)
    if found != {"--source": "oci", "--format": "json"}:
        usage(f"{found} is not how images are listed")
    tell([{"Source": "OCI", "Name": image, "Disk": 50, "Size": 30, "State": "stopped"} for image in load("tart.oci", [])])


def delete(argv: list[str]) -> None:
    _, (name,) = parse(argv, least=1, most=1)
    if name in (images := load("tart.oci", [])):
        save("tart.oci", [image for image in images if image != name])
        return
    machine_of(name)
    if running(name):
        fail(f'VM "{name}" is running', 2)
    os.unlink(f"{HOME}/tart-{name}")  # noqa: PTH108 # as above


VERBS = {
    "pull": pull,
    "clone": clone,
    "get": get,
    "set": set_,
    "run": run,
    "ip": ip,
    "exec": exec_,
    "list": list_,
    "delete": delete,
}


def main() -> None:
    play("tart", VERBS, version="2.32.1")
