"""What the guest agent is told: the payloads of its frames (``guest/agent.h``), from the same runtime spec that an OCI runtime would get."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from zlayer_driver.backends.supervised.bundle import Bundle
from zlayer_driver.backends.supervised.security import CAPABILITIES
from zlayer_driver.errors import InvalidSpec
from zlayer_driver.guest.frames import PAYLOAD_MAX, fields
from zlayer_driver.host.steering import Link, Route
from zlayer_driver.model import Mount, Network, Resources, TaskSpec
from zlayer_driver.readings import ExecOptions, GuestOverlay, WindowSize

Doc = Mapping[str, Any]

# What QEMU's user network gives its guest, and where it resolves names.
USER_NET = Link("", "52:54:00:12:34:56", 1500, "10.0.2.15", 24, (Route("0.0.0.0/0", "10.0.2.2"),))
USER_NET_DNS = "10.0.2.3"

_TUNNEL, _TUNNEL_MTU = "overlay0", 1420  # `guest/tunnel.c`; the MTU of WireGuard over Ethernet, where nobody says another


def shared(task: TaskSpec) -> list[Mount]:
    """The host's directories and files that the guest sees, in the order of their numbers in the share."""
    return sorted((mount for mount in task.mounts if mount.kind == "bind"), key=lambda mount: mount.target.split("/"))


def setup(task: TaskSpec, bundle: Bundle, hostname: str, link: Link | None) -> bytes:
    """``link`` is for the guest's eth0. `InvalidSpec` for what a VM cannot have."""
    if refused := [name for name, wanted in _of_the_host(task).items() if wanted]:
        raise InvalidSpec(f"a VM cannot have {', '.join(refused)}", hint="take it away, or run the task on the primary target")
    return _small(fields([*_setup(task, bundle, hostname), *(_network(link) if link else ())]), "its mounts and limits")


def _of_the_host(task: TaskSpec) -> dict[str, bool]:
    """What only the host's kernel could give. A filter of system calls would fence off a kernel that is the task's own."""
    return {
        "the host's devices": bool(task.devices),
        "the host's namespaces": bool(task.security.host_namespaces),
        "ulimits": bool(task.ulimits),
        "sysctls": bool(task.sysctls),
        "an init beside its own": task.init,
        "a seccomp profile": task.security.seccomp not in {"", "unconfined"},
    }


def _setup(task: TaskSpec, bundle: Bundle, hostname: str) -> Iterator[tuple[str, str]]:
    yield "h", hostname
    yield from limits(task.resources)
    if task.security.readonly_rootfs:
        yield "r", ""
    for name in ("hosts", "hostname", "resolv.conf"):
        yield "f", f"/etc/{name}\n{_etc(bundle, task.network, name)}"
    for mount in task.mounts:
        if mount.kind == "tmpfs":
            size = f",size={mount.size_bytes}" if mount.size_bytes else ""
            yield "t", f"{'ro' if mount.read_only else 'rw'},mode=1777{size} {mount.target}"
    for number, mount in enumerate(shared(task)):
        yield "b", f"{'ro' if mount.read_only else 'rw'} {number} {mount.target}"


def _network(link: Link) -> Iterator[tuple[str, str]]:
    """Routes on the link before those through a gateway that it reaches."""
    yield "n", f"eth0 {link.address} {link.prefix_length} {link.mtu}"
    for route in sorted(link.routes, key=lambda route: bool(route.gateway)):
        target, _, prefix_length = route.target.partition("/")
        yield "g", f"eth0 {target} {prefix_length} {route.gateway or '-'}"


def overlay(config: GuestOverlay) -> Iterator[tuple[str, str]]:
    """A tunnel with these peers and no others; `InvalidSpec` for a config that is none."""
    try:
        yield "w", _hex(config.private_key)
        for peer in config.peers:
            host, _, port = peer["endpoint"].rpartition(":")
            networks = " ".join(_networks(peer))
            yield "q", f"{_hex(peer['public_key'])} {host.strip('[]')} {int(port)} {int(peer['persistent_keepalive_s'])} {networks}"
        mtu = min((int(peer["mtu"]) for peer in config.peers), default=_TUNNEL_MTU)
        for address in map(ip_address, filter(None, (config.address, config.address6))):
            yield "n", f"{_TUNNEL} {address} {address.max_prefixlen} {mtu}"
        for network in (network for peer in config.peers for network in _networks(peer)):
            yield "g", f"{_TUNNEL} {network} -"
    except (KeyError, ValueError) as error:
        raise InvalidSpec(f"a guest cannot have this overlay: {error!r}") from error


def _networks(peer: Mapping[str, str]) -> list[str]:
    """What is allowed to a peer, as the agent reads it: address and prefix length apart."""
    return [str(ip_network(text)).replace("/", " ") for text in peer["allowed_ips"].split(",")]


def _hex(key: str) -> str:
    return base64.b64decode(key, validate=True).hex()


def _etc(bundle: Bundle, network: Network, name: str) -> str:
    """A resolver on the host's loopback is out of a guest's reach; the user network has one that asks it."""
    if name == "resolv.conf" and network.mode == "host" and not network.dns_servers:
        return f"nameserver {USER_NET_DNS}\n"
    return (bundle.etc / name).read_text()


def limits(resources: Resources) -> Iterator[tuple[str, str]]:
    if resources.memory_bytes:
        yield "m", str(resources.memory_bytes)
    if resources.pids:
        yield "p", str(resources.pids)
    if resources.cpu_quota_us:
        yield "c", f"{resources.cpu_quota_us} {resources.cpu_period_us}"


def process(bundle: Bundle) -> dict[str, Any]:
    """The container's own process, as in its runtime spec."""
    return dict(json.loads(bundle.config.read_bytes())["process"])


def start(process: Doc, size: WindowSize | None = None) -> bytes:
    """The payload of START for a ``process`` of the runtime spec; with ``size``, on a terminal."""
    return _small(fields(_start(process, size)), "its command and environment")


def _start(process: Doc, size: WindowSize | None) -> Iterator[tuple[str, str]]:
    user = process["user"]
    yield from (("a", part) for part in process["args"])
    yield from (("e", entry) for entry in process["env"])
    yield "d", process["cwd"]
    yield "u", f"{user['uid']}:{user['gid']}{''.join(f',{gid}' for gid in user['additionalGids'])}"
    yield "k", f"{sum(1 << CAPABILITIES.index(name) for name in process['capabilities']['bounding']):x}"
    if size is not None:
        yield "w", f"{size.rows} {size.columns}"


def command(bundle: Bundle, argv: Sequence[str], options: ExecOptions, user: Doc | None, *, tty: bool) -> bytes:
    """The payload of START for a further command: the container's own process with another command line."""
    if not argv or any("\0" in part for part in argv):
        raise InvalidSpec("a command to execute needs a name, and no NUL byte")
    changed = process(bundle)
    changed["args"] = list(argv)
    changed["env"] = [*(["TERM=xterm"] if tty else []), *changed["env"], *(f"{name}={value}" for name, value in options.env.items())]
    changed |= {"cwd": options.work_dir or changed["cwd"], "user": user or changed["user"]}
    return start(changed, WindowSize(24, 80) if tty else None)


def _small(payload: bytes, what: str) -> bytes:
    if len(payload) > PAYLOAD_MAX:
        raise InvalidSpec(f"{what} are {len(payload)} bytes, and a VM takes {PAYLOAD_MAX}")
    return payload
