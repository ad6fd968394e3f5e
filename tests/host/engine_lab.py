"""Real engines of a test's own: storage, sockets, cgroups and all below one directory, and nothing left of them."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket as sockets
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGKILL

import httpx2
import pytest

from zlayer_driver.host import cgroups
from zlayer_driver.host.processes import command_lines

PODMAN_NEEDS = ("linux", "root", "podman", "runc", "conmon")
DOCKER_NEEDS = ("linux", "root", "dockerd", "containerd", "runc")
ONE_AT_A_TIME = pytest.mark.xdist_group("podman")  # two Podmans side by side lose each other's exits
_READY_WITHIN_S = 20.0

# Mounts of its own, which go with it; and shared memory of its own: all Podmans of a node keep their locks there, under one name.
_ALONE = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs shm /dev/shm && exec "$@"', "sh"]

# Without systemd: cgroups by files, events in a file.
_CONTAINERS_CONF = """[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""
_STORAGE_CONF = """[storage]
driver = "overlay"
graphroot = "{root}/storage"
runroot = "{root}/run"
"""
_REGISTRIES_CONF = """[[registry]]
location = "127.0.0.1"
insecure = true
"""


@contextmanager
def podman() -> Iterator[str]:
    """The socket of ``podman system service``. Podman takes no path of over 50 characters, so the one of a test will not do."""
    root = Path(tempfile.mkdtemp(prefix="zlayer-"))
    for name, text in (("containers", _CONTAINERS_CONF), ("storage", _STORAGE_CONF), ("registries", _REGISTRIES_CONF)):
        (root / f"{name}.conf").write_text(text.format(root=root))
    settings = {
        "CONTAINERS_CONF": f"{root}/containers.conf",
        "CONTAINERS_STORAGE_CONF": f"{root}/storage.conf",
        "CONTAINERS_REGISTRIES_CONF": f"{root}/registries.conf",
        "TMPDIR": str(root),
    }
    places = ["--root", f"{root}/storage", "--runroot", f"{root}/run", "--tmpdir", f"{root}/libpod"]
    socket = root / "podman.sock"
    with _running(root, ["podman", *places, "system", "service", "--time=0", f"unix://{socket}"], socket, settings):
        yield str(socket)
    _remove_cgroups("libpod_parent")


@contextmanager
def docker(root: Path) -> Iterator[str]:
    """The socket of ``dockerd``, which starts a containerd of its own."""
    socket = root / "docker.sock"
    places = ["--data-root", f"{root}/data", "--exec-root", f"{root}/exec", "--pidfile", f"{root}/pid", "-H", f"unix://{socket}"]
    quiet = ["--iptables=false", "--ip6tables=false", "--bridge=none", "--cgroup-parent", f"/{_cgroup(root)}", "--log-level=warn"]
    with _running(root, ["dockerd", *places, *quiet], socket, {"DOCKER_TMPDIR": str(root)}):
        yield str(socket)
    _remove_cgroups(_cgroup(root))


def _cgroup(root: Path) -> str:
    return f"zlayer-test-{os.getpid()}-{root.name}"


def _end_all(root: Path) -> None:
    """Podman's supervisors of commands stay for five minutes, for whoever asks how the command ended."""
    for pid, argv in command_lines():
        if any(bytes(root) in part for part in argv):
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                os.kill(pid, SIGKILL)
                select.select([pidfd], [], [], _READY_WITHIN_S)
                os.close(pidfd)


def _remove_cgroups(name: str) -> None:
    """The parent of all containers, in every tree, unless another engine of this node uses it."""
    for tree in cgroups.trees().roots():
        for group in sorted((tree / name).glob("**/"), reverse=True):
            with suppress(OSError):
                group.rmdir()


@contextmanager
def _running(root: Path, argv: Sequence[str], socket: Path, settings: Mapping[str, str]) -> Iterator[None]:
    with (root / "engine.log").open("wb") as log:
        process = subprocess.Popen([*_ALONE, *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **settings})
    try:
        _wait_until_served(process, socket, root / "engine.log")
        yield
    finally:
        remove_all(str(socket))
        process.terminate()
        process.wait()
        _end_all(root)
        shutil.rmtree(root)


def _wait_until_served(process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    """Returns once the engine answers; its death or silence is a failure."""
    deadline = time.monotonic() + _READY_WITHIN_S
    pidfd = os.pidfd_open(process.pid)
    try:
        while time.monotonic() < deadline:
            if _listens(socket):
                with suppress(httpx2.TransportError), _client(str(socket)) as http:
                    http.get("/_ping").raise_for_status()
                    return
            if select.select([pidfd], [], [], 0.02)[0]:
                break
    finally:
        os.close(pidfd)
    raise AssertionError(f"{socket.name} is not served: {log.read_text()[-2000:]}")


def _listens(socket: Path) -> bool:
    """The HTTP library does not close the sockets of connections that fail."""
    with sockets.socket(sockets.AF_UNIX) as probe:
        return probe.connect_ex(str(socket)) == 0


def _client(socket: str) -> httpx2.Client:
    return httpx2.Client(base_url="http://engine", transport=httpx2.HTTPTransport(uds=socket), trust_env=False, timeout=30)


def containers(socket: str, **label: str) -> list[str]:
    """Names of all containers, running or not, or of those with a label."""
    filters = json.dumps({"label": [f"{key}={value}" for key, value in label.items()]})
    with _client(socket) as http:
        found = http.get("/containers/json", params={"all": 1, "filters": filters}).raise_for_status().json()
    return [str(entry["Names"][0]) for entry in found]


def pull(socket: str, image: str) -> None:
    with _client(socket) as http:
        answer = http.post("/images/create", params={"fromImage": image}).raise_for_status()
    assert '"error"' not in answer.text, answer.text


def tag(socket: str, image: str, repository: str, name: str) -> None:
    with _client(socket) as http:
        http.post(f"/images/{image}/tag", params={"repo": repository, "tag": name}).raise_for_status()


def untag(socket: str, image: str) -> None:
    """Where it is there at all; its layers stay for as long as another name has them."""
    with _client(socket) as http:
        assert http.delete(f"/images/{image}").status_code in {200, 404}


def has(socket: str, image: str) -> bool:
    with _client(socket) as http:
        return http.get(f"/images/{image}/json").is_success


def followers(socket: str) -> list[str]:
    """Processes that carry output of that engine's containers."""
    return [f"follower {pid}" for pid, argv in command_lines() if b"engine_follower.py" in b" ".join(argv) and socket.encode() in argv]


def remove_all(socket: str) -> None:
    """A test that fails in the middle must not burden the machine."""
    with suppress(httpx2.TransportError), _client(socket) as http:
        for entry in http.get("/containers/json", params={"all": 1}).json():
            http.delete(f"/containers/{entry['Id']}", params={"force": 1, "v": 1})
