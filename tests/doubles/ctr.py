"""A double of ctr 2.3.4 and of the containerd and runhcs shim behind it; a Windows container is a process of this Linux.

Below ``$DOUBLES``: ``ctr.json`` has the ``registry`` (a digest per reference) and the ``auth`` that it may ask for, ``content`` a document per
digest, ``images`` and ``containers`` what it says; ``tasks`` has for each its pids, and its exit status when it has ended; ``events`` a FIFO
for each who listens.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from tests.doubles.ctr_shim import NO_FILE, check_log_uri, create, emit, fail, names, process, read, send
from tests.doubles.double import HOME, begin, load, note, parse, save, settle, usage, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tests.doubles.double import Doc

FIRST = ["--address", r"\\.\pipe\containerd-containerd", "--namespace", "zlayer"]
FILTERS = ['namespace==zlayer,topic=="/tasks/exit"', 'namespace==zlayer,topic=="/containers/update"']
USERS = ("ContainerUser", "ContainerAdministrator")
SIGNALS = {15: signal.SIGTERM, 6: signal.SIGTERM, 1: signal.SIGHUP, 2: signal.SIGINT, 5: signal.SIGHUP, 9: signal.SIGKILL}


def log(level: str, message: str) -> None:
    sys.stderr.write(f'time="2026-11-24T18:00:00.000000000Z" level={level} msg="{message}"\n')


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def unknown(container: str) -> str:
    return f'container "{container}" in namespace "zlayer": not found'


def task_dir(container: str) -> str:
    if load(f"containers/{container}", None) is None:
        fail(unknown(container))
    if read(f"tasks/{container}/pid") is None:
        fail(f"no running task found: task {container} not found: not found")
    return f"tasks/{container}"


def version(argv: list[str]) -> None:
    parse(argv, most=0)
    block = "  Version:  v2.3.4\n  Revision: 0000000000000000000000000000000000000000"
    say(f"Client:\n{block}\n  Go version: go1.26\n\nServer:\n{block}\n  UUID: 6f5f4c0e-0000-0000-0000-000000000000")


# Images.


def images_list(argv: list[str]) -> None:
    parse(argv, most=0)
    say("REF TYPE DIGEST SIZE PLATFORMS LABELS ")
    for name, digest in load("images", {}).items():
        say(f"{name} application/vnd.oci.image.manifest.v1+json {digest} 1.2 GiB windows/amd64 - ")


def images_pull(argv: list[str]) -> None:
    found, (name,) = parse(argv, flags={"--plain-http"}, options={"--snapshotter", "--platform", "--user"}, least=1, most=1)
    if found.get("--snapshotter") != "windows" or found.get("--platform") not in ("windows/amd64", "windows/arm64"):
        usage(f"only a Windows image can be unpacked: {found}")
    settings = load("ctr.json", {})
    if found.get("--user", settings.get("auth")) != settings.get("auth"):
        fail(f"failed to resolve image: {name}: unexpected status from HEAD request: 401 Unauthorized")
    if name not in settings["registry"] or found.get("--plain-http", False) != (name in settings.get("plain", [])):
        fail(f"failed to resolve image: {name}: not found")
    save("images", {**load("images", {}), name: settings["registry"][name]})


def images_tag(argv: list[str]) -> None:
    found, (source, target) = parse(argv, flags={"--force"}, least=2, most=2)
    images = load("images", {})
    if source not in images:
        fail(f'image "{source}": not found')
    if target in images and "--force" not in found:
        fail(f'image "{target}": already exists')
    save("images", {**images, target: images[source]})


def images_delete(argv: list[str]) -> None:
    found, (name,) = parse(argv, flags={"--sync"}, least=1, most=1)
    if "--sync" not in found:
        usage("what is deleted without --sync goes some time after ctr has returned")
    images = load("images", {})
    if images.pop(name, None) is None:
        log("warning", f"{name}: image not found")
    save("images", images)


def images_prune(argv: list[str]) -> None:
    found, _ = parse(argv, flags={"--all"}, most=0)
    if "--all" not in found:
        log("warning", "No images pruned. `image prune` requires --all to be specified.")
        return
    used = {load(f"containers/{name}", {})["image"] for name in names(f"{HOME}/containers")}
    save("images", {name: digest for name, digest in load("images", {}).items() if name in used})


def content_get(argv: list[str]) -> None:
    _, (digest,) = parse(argv, least=1, most=1)
    sys.stdout.write(read(f"content/{digest}") or fail(f"content {digest}: not found"))


# Containers.


def run(argv: list[str]) -> None:
    needed = {"--runtime": "io.containerd.runhcs.v1", "--snapshotter": "windows"}
    limits = {"--memory-limit": 1 << 50, "--cpu-max": 10_000, "--cpu-shares": 10_000}
    found, (image, name, *command) = parse(
        argv,
        flags={"--detach", "--isolated", "--cni"},
        options={*needed, *limits, "--log-uri", "--env-file", "--cwd", "--user"},
        repeated={"--label", "--mount"},
        least=2,
        stop_at=2,
    )
    if not found.get("--detach") or any(found.get(key) != value for key, value in needed.items()):
        usage(f"a container of ours is run otherwise: {found}")
    for key in limits.keys() & found:
        whole(found[key], limits[key])
    if [container_of(label) for label in found["--label"]] != [name]:
        usage(f"no label of ours: {found['--label']}")
    if os.path.basename(os.path.dirname(found.get("--env-file", ""))) != name:  # noqa: PTH119, PTH120 # as above
        usage(f"the variables of another container: {found.get('--env-file')}")
    if found.get("--user", USERS[0]) not in USERS:
        fail(f"no such user: {found['--user']}")
    for mount in found["--mount"]:
        check_mount(mount)
    if not os.access(found.get("--cwd", "/"), os.X_OK):
        fail("The directory name is invalid.")
    check_log_uri(found.get("--log-uri", ""))
    if image not in load("images", {}):
        fail(f'image "{image}": not found')
    spec = {key: found.get(key) for key in ("--isolated", "--cni", "--cwd", "--user", "--mount", *limits)}
    create(
        image, name, command or image_command(image), found.get("--log-uri", ""), {**spec, "env": environment(found.get("--env-file", ""))}
    )


def container_of(label: str) -> str:
    import hashlib  # noqa: PLC0415 # it costs a good part of a double's start

    return f"zlayer-{hashlib.sha256(label.removeprefix('zlayer.task=').encode()).hexdigest()[:32]}"


def check_mount(text: str) -> None:
    import csv  # noqa: PLC0415 # as above

    (words,) = csv.reader([text])
    fields = dict(word.split("=", 1) for word in words)
    if fields.keys() != {"type", "src", "dst", "options"} or fields["type"] != "bind" or not os.access(fields["src"], os.F_OK):
        fail(f"mount {text!r} not supported")
    if fields["options"] not in ("rbind:ro", "rbind:rw"):
        fail(f"mount options {fields['options']!r} not supported")


def image_command(image: str) -> list[str]:
    manifest = load(f"content/{load('images', {})[image]}", {})
    config = load(f"content/{manifest['config']['digest']}", {}).get("config", {})
    return [*config.get("Entrypoint", []), *config.get("Cmd", [])]


def environment(file: str) -> Doc:
    try:
        with open(file) as lines:  # noqa: PTH123 # as above
            return dict(line.rstrip("\n").split("=", 1) for line in lines)
    except FileNotFoundError:
        fail(f"open {file}: The system cannot find the file specified.")


def tasks_list(argv: list[str]) -> None:
    parse(argv, most=0)
    say("TASK    PID    STATUS    ")
    for name in names(f"{HOME}/tasks"):
        settle(name)
        if pid := read(f"tasks/{name}/pid"):
            say(f"{name}    {pid}    {'RUNNING' if read(f'tasks/{name}/exit') is None else 'STOPPED'}")


def tasks_kill(argv: list[str]) -> None:
    found, (name,) = parse(argv, options={"--signal", "--exec-id"}, least=1, most=1)
    directory, number = task_dir(name), whole(found.get("--signal", "15"))
    if number not in SIGNALS:
        fail(f"signal {number}: invalid signal value: failed precondition")
    pid = read(f"{directory}/{found.get('--exec-id', 'pid')}")
    if pid is None or ("--exec-id" not in found and read(f"{directory}/exit") is not None):
        fail("process already finished: not found")
    send(os.killpg if number == signal.SIGKILL else os.kill, process(name, found.get("--exec-id", "pid")), SIGNALS[number])


def tasks_delete(argv: list[str]) -> None:
    found, (name,) = parse(argv, flags={"--force"}, least=1, most=1)
    directory = task_dir(name)
    if "--force" in found:
        send(os.killpg, int(read(f"{directory}/pid") or 0), signal.SIGKILL)
        while read(f"{directory}/exit") is None:
            time.sleep(0.002)
    code = read(f"{directory}/exit")
    if code is None:
        log("error", f"unable to delete {name}")
        fail("task must be stopped before deletion: running: failed precondition")
    if code != "0":
        log("warning", f"task {name} exit with non-zero exit code {code}")
    forget(name)


def forget(name: str) -> None:
    for file in names(f"{HOME}/tasks/{name}"):
        os.unlink(f"{HOME}/tasks/{name}/{file}")  # noqa: PTH108 # as above


def tasks_exec(argv: list[str]) -> None:
    found, (name, *command) = parse(argv, options={"--exec-id", "--cwd", "--user"}, least=2, stop_at=1)
    directory, given = task_dir(name), found.get("--exec-id") or usage('Required flag "exec-id" not set')
    if not given.startswith("exec-") or found.get("--user", "ContainerUser") not in ("ContainerUser", "ContainerAdministrator"):
        fail(f"no such user: {found}")
    env = {"PATH": "/usr/bin:/bin", "DOUBLES": HOME, **load(f"containers/{name}", {})["env"]}
    beginning = begin(name)
    save(f"{directory}/{given}", 0)
    if (pid := os.fork()) == 0:
        os.setsid()
        save(f"{directory}/{given}", os.getpid())
        os.chdir(found.get("--cwd", "/"))
        try:
            os.execvpe(command[0], command, env)
        except OSError:
            sys.stderr.write(f"ctr: {NO_FILE.format(name)}\n")
            os._exit(1)
    os.close(beginning)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def tasks_metrics(argv: list[str]) -> None:
    _, (name,) = parse(argv, least=1, most=1)
    task_dir(name)
    say(f"ID    TIMESTAMP\n{name}    2026-11-24 18:00:00 +0000 UTC\n\nMETRIC    VALUE")
    say(
        "uptime_ns    5000000\ncpu.total_runtime_ns    3000000\nmemory.commit_bytes    9000000\nmemory.private_working_set_bytes    7000000"
    )


def containers_delete(argv: list[str]) -> None:
    _, (name,) = parse(argv, least=1, most=1)
    settle(name)
    if load(f"containers/{name}", None) is None:
        log("error", f"failed to delete container {name}")
        fail(unknown(name))
    if read(f"tasks/{name}/pid") and read(f"tasks/{name}/exit") is None:
        fail("cannot delete a non stopped container: {running 0}")
    forget(name)
    os.rmdir(f"{HOME}/tasks/{name}")  # noqa: PTH106 # as above
    os.unlink(f"{HOME}/containers/{name}")  # noqa: PTH108 # as above


def containers_label(argv: list[str]) -> None:
    _, (name, label) = parse(argv, least=2, most=2)
    if load(f"containers/{name}", None) is None or label != "zlayer.watched=true":
        fail(unknown(name))
    emit("/containers/update", {"id": name, "labels": dict([label.split("=")])})


def events(argv: list[str]) -> None:
    if argv != FILTERS:
        usage(f"no such filters: {argv}")
    path = f"{HOME}/events/{os.getpid()}"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    while True:
        os.write(1, os.read(fd, 65536))


VERBS = {
    "version": version,
    "images list": images_list,
    "images pull": images_pull,
    "images tag": images_tag,
    "images delete": images_delete,
    "images prune": images_prune,
    "content get": content_get,
    "run": run,
    "tasks list": tasks_list,
    "tasks kill": tasks_kill,
    "tasks delete": tasks_delete,
    "tasks exec": tasks_exec,
    "tasks metrics": tasks_metrics,
    "containers delete": containers_delete,
    "containers label": containers_label,
    "events": events,
}


def main() -> None:
    argv = sys.argv[1:]
    note(["ctr.exe", *argv])
    if argv[:4] != FIRST:
        fail(f"cannot access socket {argv[1:2]}: The system cannot find the file specified.")
    for words in (2, 1):
        if verb := VERBS.get(" ".join(argv[4 : 4 + words])):
            verb(argv[4 + words :])
            return
    usage(f"No help topic for {argv[4:]}")
