"""A double of Apple's container 1.2; a container is a process of this system. Images are files of ``$DOUBLES/images``."""

from __future__ import annotations

import os
import sys
import time

from tests.doubles.double import HOME, Doc, begin, load, parse, play, save, settle, tell, usage, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

SIGKILL = 9
CREATE_FLAGS = {"--init", "--read-only"}
CREATE_OPTIONS = {
    *("--progress", "--os", "--name", "--env-file", "--cpus", "--memory", "--user", "--workdir", "--entrypoint", "--shm-size"),
}
CREATE_REPEATED = {"--env", "--mount", "--ulimit", "--cap-add", "--cap-drop", "--dns", "--dns-search", "--dns-option"}


def fail(kind: str, message: str) -> NoReturn:
    sys.stderr.write(f'Error: {kind}: "{message}"\n')
    sys.exit(1)


def image_of(name: str) -> Doc:
    pulled: list[str] = load("container.images", [])
    if name not in pulled:
        fail("notFound", f"image not found: {name}")
    reference = load("container.tags", {}).get(name, name)
    return load(image_file(reference), {})  # type: ignore[no-any-return] # what the test has put there


def image_file(image: str) -> str:
    return f"images/{image.replace('/', '_')}"


def container_of(name: str) -> Doc:
    found: Doc | None = load(f"container-{name}", None)
    if found is None:
        fail("notFound", f"container with ID {name} not found")
    return found


def create(argv: list[str]) -> None:
    found, (image, *arguments) = parse(argv, flags=CREATE_FLAGS, options=CREATE_OPTIONS, repeated=CREATE_REPEATED, least=1, stop_at=1)
    name = found["--name"]
    if found["--progress"] != "none" or found["--os"] != "linux" or not 1 < len(name) <= 63 or not name.replace("-", "").isalnum():
        usage(f"--progress, --os or --name does not fit: {found}")
    if load(f"container-{name}", None) is not None:
        fail("exists", f"container with id {name} already exists")
    if image not in load("container.images", []):
        pull(["--progress", "none", "--os", "linux", image])
    settings = {key: value for key, value in found.items() if value}
    settings["--cpus"] = whole(found["--cpus"], 64)
    for key in ("--memory", "--shm-size"):
        if key in found:
            settings[key] = mebibytes(found[key])
    mounts = [mount(text) for text in found["--mount"]]
    entrypoint = [found["--entrypoint"]] if "--entrypoint" in found else []
    argv = [*entrypoint, *(arguments or (() if entrypoint else image_of(image)["cmd"]))]
    doc = {"argv": argv, "settings": settings, "mounts": mounts, "image": image, "env": environment(found), "started": False, "pid": 0}
    save(f"container-{name}", doc)
    tell(name)


def mebibytes(text: str) -> int:
    if not text.endswith("M"):
        usage(f"'{text}' is no size in M")
    return whole(text[:-1])


def mount(text: str) -> Doc:
    parts = {part.partition("=")[0]: part.partition("=")[2] for part in text.split(",")}
    allowed = {"bind": {"source", "target", "readonly"}, "tmpfs": {"target", "size", "mode"}}.get(parts.get("type", ""), set())
    if not parts.keys() - {"type"} <= allowed or "target" not in parts:
        usage(f"'{text}' is no mount")
    if parts["type"] == "bind" and not os.path.isdir(parts["source"]):  # noqa: PTH112 # pathlib costs half of a double's start
        fail("invalidArgument", f"path '{parts['source']}' is not a directory")
    return parts


def environment(found: Doc) -> dict[str, str]:
    entries = list(found["--env"])
    if "--env-file" in found:
        with open(found["--env-file"]) as file:  # noqa: PTH123 # as above
            entries = [*(line.rstrip("\n") for line in file if line.strip() and not line.startswith("#")), *entries]
    if not all("=" in entry for entry in entries):
        usage("a variable needs name=value")
    return dict(entry.split("=", 1) for entry in entries)


def start(argv: list[str]) -> None:
    import signal  # noqa: PLC0415 # it takes as long to load as all else

    found, (name,) = parse(argv, flags={"--attach"}, least=1, most=1)
    doc = container_of(name)
    if "--attach" not in found:
        usage("nobody would hear the container without --attach")
    if doc["pid"]:
        fail("invalidArgument", "attach is currently unsupported on already running containers")
    begun, running = os.pipe()  # the latter closes once the child is another program, or has failed to be
    beginning = begin(name)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        save(f"container-{name}", doc | {"pid": os.getpid()})
        become(doc, doc["argv"], doc["settings"], failed=running)
    for fd in (running, beginning):
        os.close(fd)
    if os.read(begun, 1):
        os.waitpid(pid, 0)
        save(f"container-{name}", doc)
        fail("internalError", f"failed to start process: failed to find target executable {doc['argv'][0]}")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _frame: os.kill(pid, number))
    save(f"container-{name}", doc | {"pid": pid, "started": True})
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    end_group(pid)
    if load(f"container-{name}", None) is not None:
        save(f"container-{name}", doc | {"pid": 0, "started": True})
    sys.exit(128 - status if status < 0 else status)


def become(doc: Doc, argv: list[str], settings: Doc, *, failed: int = -1) -> NoReturn:
    env = {"PATH": os.environ["PATH"], "DOUBLES": HOME, **doc["env"], "CONTAINER": repr(doc)}
    try:
        os.chdir(settings.get("--workdir", "/"))
        if user := settings.get("--user"):
            uid, _, gid = user.partition(":")
            os.setgroups([])
            os.setgid(int(gid or uid))
            os.setuid(int(uid))
        os.execvpe(argv[0], argv, env)  # it becomes it
    except OSError:
        if failed >= 0:
            os.write(failed, b"!")
        os._exit(125)


def end_group(pid: int) -> None:
    """As the real one, it returns when they have ended."""
    try:
        os.killpg(pid, SIGKILL)
    except ProcessLookupError:
        return
    while any(lives_in(pid, other) for other in os.listdir("/proc") if other.isdigit()):  # noqa: PTH208 # as above
        time.sleep(0.005)


def lives_in(group: int, pid: str) -> bool:
    """Whether a process of the group has not ended; one that nobody has reaped yet has."""
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123 # as above
            state, _, its_group = stat.read().rpartition(")")[2].split()[:3]
    except OSError:
        return False
    return int(its_group) == group and state not in "ZX"


def kill(argv: list[str]) -> None:
    import signal  # noqa: PLC0415 # it takes as long to load as all else

    found, (name,) = parse(argv, options={"--signal"}, least=1, most=1)
    doc = container_of(name)
    if found.get("--signal") not in signal.Signals.__members__:
        usage(f"'{found.get('--signal')}' is no signal")
    try:
        if doc["pid"]:
            os.kill(doc["pid"], signal.Signals[found["--signal"]])
            return
    except ProcessLookupError:
        pass  # it has just ended
    fail("invalidState", f"container {name} is not running")


def delete(argv: list[str]) -> None:
    found, (name,) = parse(argv, flags={"--force"}, least=1, most=1)
    settle(name)
    doc = container_of(name)
    if doc["pid"] and "--force" not in found:
        fail("invalidState", f"container {name} is running and can not be deleted")
    if doc["pid"]:
        end_group(doc["pid"])
    for entry in os.listdir(HOME):  # noqa: PTH208 # as above
        if entry.startswith(f"exec-{name}-"):
            end_group(load(entry, 0))
    os.unlink(f"{HOME}/container-{name}")  # noqa: PTH108 # as above


def exec_(argv: list[str]) -> None:
    found, (name, *command) = parse(
        argv, flags={"--interactive", "--tty"}, options={"--user", "--workdir"}, repeated={"--env"}, least=2, stop_at=1
    )
    doc = container_of(name)
    if ("--tty" in found) != os.isatty(0):
        usage("--tty goes with a terminal, and a terminal with it")
    if not doc["pid"]:
        fail("invalidState", f"container {name} is not running")
    if "--interactive" not in found:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    beginning = begin(name)
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        save(f"exec-{name}-{os.getpid()}", os.getpid())
        become(doc | {"env": doc["env"] | environment(found)}, command, doc["settings"] | found)
    os.close(beginning)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 125:
        fail("internalError", f"failed to exec process failed to find target executable {command[0]}")
    sys.exit(128 - status if status < 0 else status)


def inspect(argv: list[str]) -> None:
    _, (name,) = parse(argv, least=1, most=1)
    doc = container_of(name)
    status: Doc = {"state": "running" if doc["pid"] else "stopped", "networks": []}
    if doc["started"]:
        status["startedDate"] = "2026-01-02T03:04:05Z"
    configuration = {"id": name, "stopSignal": image_of(doc["image"]).get("stopSignal")}
    tell([{"id": name, "configuration": configuration, "status": status}])


def stats(argv: list[str]) -> None:
    found, (name,) = parse(argv, flags={"--no-stream"}, options={"--format"}, least=1, most=1)
    if found != {"--no-stream": True, "--format": "json"}:
        usage(f"{found} is not how a program reads once")
    numbers = {"cpuUsageUsec": 1500, "memoryUsageBytes": 1 << 20, "memoryLimitBytes": 1 << 30, "numProcesses": 2}
    tell([{"id": name, **numbers}] if container_of(name)["pid"] else [])


def pull(argv: list[str]) -> None:
    found, (image,) = parse(argv, options={"--progress", "--os"}, least=1, most=1)
    if found != {"--progress": "none", "--os": "linux"}:
        usage(f"{found} is not how a Linux image is pulled")
    if load(image_file(image), None) is None:
        fail("internalError", f"failed to pull {image}: 404 Not Found")
    save("container.images", sorted({*load("container.images", []), image}))


def resource(image: str) -> Doc:
    platform = {"os": "linux", "architecture": "arm64"}
    return {
        "id": "4bcff63911fcb4448bd4fdacec207030997caf25e9bea4045fa6c8c44de311d1",
        "configuration": {"name": image, "descriptor": {"digest": f"sha256:{'4b' * 32}", "size": 9218}},
        "variants": [{"platform": platform, "digest": f"sha256:{'45' * 32}", "size": 4096}],
    }


def image_list(argv: list[str]) -> None:
    found, _ = parse(argv, options={"--format"}, most=0)
    if found != {"--format": "json"}:
        usage("only JSON can be read by a program")
    tell([resource(image) for image in load("container.images", [])])


def image_inspect(argv: list[str]) -> None:
    _, (image,) = parse(argv, least=1, most=1)
    image_of(image)
    tell([resource(image)])


def image_tag(argv: list[str]) -> None:
    _, (source, target) = parse(argv, least=2, most=2)
    image_of(source)
    save("container.tags", load("container.tags", {}) | {target: source})
    save("container.images", sorted({*load("container.images", []), target}))
    tell(target)


def image_delete(argv: list[str]) -> None:
    _, (image,) = parse(argv, least=1, most=1)
    image_of(image)
    save("container.images", [other for other in load("container.images", []) if other != image])
    tell(image)


def image_prune(argv: list[str]) -> None:
    found, _ = parse(argv, flags={"--all"}, most=0)
    gone = load("container.images", []) if "--all" in found else []
    save("container.images", [])
    tell("\n".join(f"untagged {image}" for image in gone))


def status(argv: list[str]) -> None:
    found, _ = parse(argv, options={"--format"}, most=0)
    if found != {"--format": "json"}:
        usage("only JSON can be read by a program")
    tell({"status": "running", "apiServerVersion": "container-apiserver version 1.2.2 (build: release, commit: 1234abc)"})


VERBS = {
    "create": create,
    "start": start,
    "kill": kill,
    "delete": delete,
    "exec": exec_,
    "inspect": inspect,
    "stats": stats,
    "image pull": pull,
    "image list": image_list,
    "image inspect": image_inspect,
    "image tag": image_tag,
    "image delete": image_delete,
    "image prune": image_prune,
    "system status": status,
}


def main() -> None:
    play("container", VERBS, version="container CLI version 1.2.2")
