"""A double of krunvm 0.2.6; a machine is a process of this system, which finds its own settings in the variable KRUN.

Images are files of ``$DOUBLES/images``; a machine of one that is ``deaf`` ignores SIGTERM.
"""

from __future__ import annotations

import os
import sys

from tests.doubles.double import HOME, Doc, load, parse, play, save, tell, usage, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def fail(message: str) -> NoReturn:
    """As krunvm does: on the standard output, with exit(-1)."""
    tell(message)
    sys.stdout.flush()
    sys.exit(255)


def image_of(name: str) -> Doc | None:
    found: Doc | None = load(f"images/{name.replace('/', '_')}", None)
    return found


def create(argv: list[str]) -> None:
    found, (image,) = parse(
        argv, options={"--name", "--cpus", "--mem", "--dns", "--workdir"}, repeated={"--volume", "--port"}, least=1, most=1
    )
    name = found.get("--name") or usage("nobody finds a machine without --name again")
    machine: Doc = {"cpus": whole(found.get("--cpus", "2"), 255), "mem": whole(found.get("--mem", "1024"), 1 << 22)}
    machine |= {"workdir": found.get("--workdir", ""), "volumes": dict(map(volume, found["--volume"])), "image": image}
    machines = load("krunvm.json", {})
    if name in machines:
        fail("A VM with this name already exists")
    if image_of(image) is None:
        sys.stderr.write(f"Error: initializing source docker://{image}: reading manifest: manifest unknown\n")
        fail("buildah returned an error: ")
    save("krunvm.json", {**machines, name: machine})
    tell(f"microVM created with name: {name}")


def volume(text: str) -> tuple[str, str]:
    host, colon, guest = text.partition(":")
    if not colon or ":" in guest or not guest.startswith("/") or not host.startswith("/") or not os.access(host, os.F_OK):
        usage(f"'{text}' is no volume")
    return guest, host


def start(argv: list[str]) -> None:
    found, (name, *command) = parse(argv, options={"--cpus", "--mem"}, repeated={"--env"}, least=1)
    machine = load("krunvm.json", {}).get(name) or fail(f"No VM found with name {name}")
    if not all("=" in entry for entry in found["--env"]):
        usage("an --env needs KEY=VALUE")
    image = image_of(machine["image"]) or fail("its image is gone")
    env = {"HOSTNAME": name, "HOME": "/root", "PATH": os.environ["PATH"], "DOUBLES": HOME, "KRUN": repr(machine)}
    command = command or image["cmd"]
    if image.get("deaf"):
        import signal  # noqa: PLC0415 # it takes as long to load as all else

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.chdir(machine["workdir"] or "/")
    try:
        os.execvpe(command[0], command, env | dict(entry.split("=", 1) for entry in found["--env"]))
    except FileNotFoundError:
        sys.stderr.write(f"Couldn't execute '{command[0]}': No such file or directory\n")
        sys.exit(127)


def delete(argv: list[str]) -> None:
    _, (name,) = parse(argv, least=1, most=1)
    machines = load("krunvm.json", {})
    if machines.pop(name, None) is None:
        fail("No VM found with that name")
    save("krunvm.json", machines)


def main() -> None:
    play("krunvm", {"create": create, "start": start, "delete": delete}, version="krunvm 0.2.6")
