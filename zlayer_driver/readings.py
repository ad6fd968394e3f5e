"""Frozen values that the abilities of `zlayer_driver.contract` take and give, beyond those of a task's life in `zlayer_driver.model`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class Channel(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One captured line, without its line end; ``at`` is in UTC."""

    channel: Channel
    message: str
    at: datetime


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Bytes of a log stream; ``at`` only where timestamps were asked for."""

    channel: Channel
    data: bytes
    at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """What to stream. Neither channel named means both. ``tail`` counts lines from the end, ``since`` and ``until`` are Unix seconds."""

    follow: bool = False
    stdout: bool = False
    stderr: bool = False
    timestamps: bool = False
    tail: int | None = None
    since: int | None = None
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a container has used up to now."""

    cpu_us: int
    memory_bytes: int
    memory_limit_bytes: int


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """What one process has used since it began."""

    cpu_user_ns: int
    cpu_system_ns: int
    rss_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSample:
    """One sample of a usage stream; counters run from the container's start. ``at`` is in UTC; ``None`` is «not measured».

    ``memory_bytes`` is all that counts against the limit, of which ``rss`` is anonymous memory and ``cache`` file pages. ``processes`` are by
    the pids of the node, in a VM by those of the container; of a great many, only some.
    """

    at: datetime
    cpu_total_ns: int
    cpu_system_ns: int = 0
    online_cpus: int = 1
    memory_bytes: int
    memory_limit_bytes: int
    net_rx_bytes: int = 0
    net_tx_bytes: int = 0
    block_read_bytes: int = 0
    block_write_bytes: int = 0
    pids: int = 0
    pids_limit: int | None = None
    memory_rss_bytes: int | None = None
    memory_cache_bytes: int | None = None
    memory_swap_bytes: int | None = None
    memory_peak_bytes: int | None = None
    cpu_throttled_periods: int | None = None
    cpu_throttled_ns: int | None = None
    memory_kernel_bytes: int | None = None
    memory_kernel_peak_bytes: int | None = None
    processes: Mapping[int, ProcessUsage] = field(default_factory=dict)

    @property
    def usage(self) -> Usage:
        return Usage(self.cpu_total_ns // 1000, self.memory_bytes, self.memory_limit_bytes)


class WaitCondition(StrEnum):
    NOT_RUNNING = "not-running"
    NEXT_EXIT = "next-exit"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """An exit with its story. ``reason`` is the backend's word (``exited``, ``signal``, ``oom_killed`` …), ``signal`` a name."""

    code: int
    reason: str
    signal: str | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ContainerDetails:
    """What a backend says of one container; ``raw`` is its own document."""

    address: str | None = None
    exit_code: int | None = None
    raw: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PortMapping:
    container_port: int
    host_port: int
    host_address: str = ""
    protocol: str = "tcp"


@dataclass(frozen=True, slots=True)
class FileChange:
    """A path that differs from the image; ``kind`` is ``added``, ``modified`` or ``deleted``."""

    path: str
    kind: str


@dataclass(frozen=True, slots=True)
class FileStat:
    name: str
    size_bytes: int
    mode: int
    modified_at: datetime
    link_target: str = ""


@dataclass(frozen=True, slots=True)
class ExecOptions:
    """Empty means the container's own. ``env`` is added to the container's."""

    user: str = ""
    work_dir: str = ""
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WindowSize:
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class ExecEvent:
    """Output of a streamed exec, or its end: then ``exit_code`` is set, ``data`` is empty, and no event follows."""

    channel: Channel = Channel.STDOUT
    data: bytes = b""
    exit_code: int | None = None


ExecInput = bytes | WindowSize


class OverlayKind(StrEnum):
    """How a container joins the overlay network."""

    HOST_NETNS = "host_netns"
    HOST_IP = "host_ip"
    GUEST_MANAGED = "guest_managed"
    HOST_PROXY = "host_proxy"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestOverlay:
    """What an agent in a guest needs to bring its overlay interface up. Addresses have no prefix length; ``address6`` may be empty."""

    address: str
    address6: str = ""
    private_key: str = field(default="", repr=False)
    peers: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ImageDetails:
    """``os`` is the OCI name that the backend's store has for the image."""

    id: str
    os: str
    raw: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a clean-up removed."""

    deleted: tuple[str, ...] = ()
    reclaimed_bytes: int = 0
