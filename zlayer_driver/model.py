"""Frozen values that the layers hand to each other. Units are in the names; nothing here knows Nomad, gRPC or a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple, Self

from zlayer_driver.errors import InvalidSpec

ISOLATION_LABEL = "com.zlayer.isolation"  # container label and image config label
IMAGES_ATTRIBUTE = (
    "unique.driver.zlayer.images"  # node attribute: canonical references with commas between; «unique.» keeps it out of the class
)
RUNTIME_ANNOTATION = "com.zlayer.runtime"  # manifest annotation


class Target(StrEnum):
    """Where a container runs; it stays there for life."""

    PRIMARY = "primary"
    DELEGATE = "delegate"
    VZ = "vz"
    VZ_LINUX = "vz_linux"


class OS(StrEnum):
    """Operating systems by their OCI names (the image spec's ``os``, Go's ``GOOS``)."""

    LINUX = "linux"
    WINDOWS = "windows"
    DARWIN = "darwin"


class Isolation(StrEnum):
    """What a task may ask for in its ``runtime`` key."""

    AUTO = "auto"
    SANDBOX = "sandbox"
    VZ = "vz"
    VZ_LINUX = "vz-linux"
    VM = "vm"


class PullPolicy(StrEnum):
    ALWAYS = "always"
    NEWER = "newer"
    IF_NOT_PRESENT = "if_not_present"
    NEVER = "never"


class PullSource(StrEnum):
    """Where a pull may look, and in which order."""

    LOCAL_FIRST = "local_first"
    S3_FIRST = "s3_first"
    REMOTE_ONLY = "remote_only"
    LOCAL_ONLY = "local_only"


@dataclass(frozen=True, slots=True)
class Platform:
    os: OS | None = None
    arch: str | None = None


class Reference(NamedTuple):
    """An image reference in its parts; ``tag`` is ``latest`` where the text had neither tag nor digest."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What local caches say of an image; ``None`` is «not known».

    ``marker`` is the manifest annotation ``com.zlayer.runtime``; ``isolation`` the config label ``com.zlayer.isolation``.
    """

    os: OS | None = None
    marker: str | None = None
    isolation: str | None = None


@dataclass(frozen=True, slots=True)
class Auth:
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Limits; ``0`` or ``None`` is «not limited». ``cpu_fraction`` is the task's part of all the node's CPUs, a limit only where one is asked for.

    ``cpuset_group`` is the directory of a control group whose CPUs the task has where ``cpuset_cpus`` names none.
    """

    cpu_shares: int = 0
    cpu_quota_us: int = 0
    cpu_period_us: int = 100_000
    cpuset_cpus: str = ""
    cpuset_group: str = ""
    cpu_fraction: float = 0.0
    memory_bytes: int = 0
    memory_reservation_bytes: int = 0
    memory_swap_bytes: int | None = None
    pids: int = 0
    oom_score_adj: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """``source`` is a host path for a bind, empty for a tmpfs; ``propagation`` is private, rslave or rshared."""

    target: str
    source: str = ""
    kind: str = "bind"
    read_only: bool = False
    propagation: str = "rprivate"
    size_bytes: int = 0
    mode: int | None = None  # permissions of a tmpfs


@dataclass(frozen=True, slots=True)
class Device:
    host_path: str
    container_path: str
    permissions: str = "rwm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """``mode`` is ``host``, ``none`` (a new, empty netns) or ``path`` (join the netns at ``netns_path``)."""

    mode: str = "host"
    netns_path: str = ""
    hostname: str = ""
    dns_servers: tuple[str, ...] = ()
    dns_searches: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[tuple[str, str], ...] = ()  # (name, address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """``host_namespaces`` are those of pid, ipc and uts that are the node's own; ``seccomp`` is a file with a filter, or ``unconfined``."""

    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    readonly_rootfs: bool = False
    no_new_privileges: bool = False
    seccomp: str = ""
    host_namespaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ulimit:
    """A limit of setrlimit(2) by its name in lower case, such as nofile; ``None`` is unlimited."""

    name: str
    soft: int | None
    hard: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One container to run. ``image`` is canonical where it parses, else the text as given.

    An image that a task brings is a source such as ``oci-archive:/FILE``, and must lie in ``image_root`` if there is one.
    ``service`` names the workload in errors and placement. ``stdout_path`` and ``stderr_path`` are FIFOs, files or ``/dev/null``.
    ``entrypoint``/``command``/``args`` override the image's as Docker does: an entrypoint given drops the image's command too.
    """

    id: str
    name: str
    image: str
    image_root: str = ""
    service: str = ""
    runtime: Isolation | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    oci_runtime: str = ""
    entrypoint: tuple[str, ...] | None = None
    command: str | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    groups: tuple[str, ...] = ()  # beside those that the image gives the user
    work_dir: str = ""
    init: bool = False
    resources: Resources = Resources()
    ulimits: tuple[Ulimit, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    shm_bytes: int = 64 << 20
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    network: Network = Network()
    security: Security = Security()
    stdout_path: str = "/dev/null"
    stderr_path: str = "/dev/null"
    pull: PullPolicy = PullPolicy.IF_NOT_PRESENT
    pull_timeout_s: float = 300.0
    auth: Auth | None = None


@dataclass(frozen=True, slots=True)
class GroupPort:
    """A port of a group's network: of the node at ``host_address`` (empty: at its own), and in the network. Both TCP and UDP."""

    label: str
    host_port: int
    container_port: int
    host_address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequest:
    """A task as Nomad hands it over, before the task block is validated: everything is already a value of ours, ``config`` is raw.

    ``alloc_dir`` is the host directory of the allocation, empty outside Nomad. ``env`` is final; the image's lies below it.
    ``mounts`` are volumes and devices' mounts, without the alloc, local and secrets directories.
    """

    id: str
    name: str
    config: Mapping[str, Any]
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    resources: Resources = Resources()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    network: Network = Network()
    alloc_dir: str = ""
    stdout_path: str = "/dev/null"
    stderr_path: str = "/dev/null"
    alloc_id: str = ""
    group_name: str = ""
    job_name: str = ""
    job_id: str = ""
    namespace: str = ""
    node_name: str = ""
    node_id: str = ""
    ports: tuple[GroupPort, ...] = ()


@dataclass(frozen=True, slots=True)
class Handle:
    """All that survives a restart. ``data`` is the backend's own, plain JSON, and enough to recover from alone."""

    task_id: str
    target: Target
    backend: str
    data: Mapping[str, Any]

    VERSION: ClassVar[int] = 1

    def dumps(self) -> bytes:
        """UTF-8 JSON with its version inside."""
        return json.dumps(
            {"v": self.VERSION, "task_id": self.task_id, "target": self.target, "backend": self.backend, "data": dict(self.data)},
            separators=(",", ":"),
        ).encode()

    @classmethod
    def loads(cls, raw: bytes) -> Self:
        """The handle that `dumps` wrote; `InvalidSpec` for anything else."""
        try:
            doc = json.loads(raw)
            if doc["v"] != cls.VERSION:
                raise InvalidSpec(
                    f"task handle has version {doc['v']!r}, and this driver reads {cls.VERSION}", hint="stop and start the task again"
                )
            return cls(str(doc["task_id"]), Target(doc["target"]), str(doc["backend"]), dict(doc["data"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidSpec(f"task handle is damaged: {error!r}", hint="stop and start the task again") from error


@dataclass(frozen=True, slots=True)
class Exit:
    """How a task ended. A signal death has ``code`` 128+n and ``signal`` n; ``error`` is set only where the code could not be learnt."""

    code: int
    signal: int = 0
    oom_killed: bool = False
    error: str = ""

    @classmethod
    def of_child(cls, status: int) -> Self:
        """From a return code as `subprocess` gives it."""
        return cls(128 - status, -status) if status < 0 else cls(status)


class Health(StrEnum):
    UNDETECTED = "undetected"
    UNHEALTHY = "unhealthy"
    HEALTHY = "healthy"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a backend or the driver says of itself. Attribute keys are complete (``driver.zlayer.…``) only at the driver's level."""

    health: Health
    description: str = ""
    attributes: Mapping[str, str | int | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExecResult:
    exit: Exit
    stdout: bytes = b""
    stderr: bytes = b""


class TaskState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class TaskStatus:
    id: str
    name: str
    state: TaskState
    started_at: datetime
    completed_at: datetime | None = None
    exit: Exit | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """Something worth telling the user of a task while it is prepared or runs."""

    task_id: str
    alloc_id: str
    task_name: str
    message: str
    at: datetime
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image of a store. ``reference`` is canonical; sizes in bytes, ``None`` where the backend does not know."""

    reference: str
    digest: str | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """The network of an allocation. ``path`` is its namespace's file; ``address`` is what ``hostname``, if any, stands for in /etc/hosts.

    ``created`` is false for a network that was there already.
    """

    path: str
    hostname: str
    address: str
    created: bool


@dataclass(frozen=True, slots=True)
class PullProgress:
    """A step of a pull. ``phase`` is ``resolve``, ``download``, ``unpack`` or ``done``; ``layer`` is a digest, empty for the whole image.

    A pull that fetches something begins with a ``download`` of the whole image, one that finds all here has none.
    """

    image: str
    phase: str
    layer: str = ""
    done_bytes: int = 0
    total_bytes: int | None = None


Report = Callable[[PullProgress], None]
