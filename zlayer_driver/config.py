"""The two config blocks: the operator's plugin block and the job author's task block.

The models are the only description: validation, the hclspec that Nomad asks for (`wire.hclspec`) and the reference in the docs
all derive from them. Nomad hands values over as msgpack, where a number may come as int, float or text, an absent key as nil, and a
map as a list of maps.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from ipaddress import ip_address, ip_network
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from zlayer_driver.errors import ConfigError
from zlayer_driver.model import OS, Isolation, Target

Model = TypeVar("Model", bound="Block")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_TERM = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_DURATION = re.compile(f"(?:{_TERM.pattern})+")
_UNIT_SHIFT = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SIZE = re.compile(r"(\d{1,15})([bkmgt]?)b?", re.ASCII)
_NEEDED = {"model": "one block", "dict": "a map", "list": "a list", "int": "a whole number", "float": "a number", "bool": "true or false"}


def _seconds(value: object) -> object:
    """Go's duration text (``1m30s``) as seconds; a bare number is seconds."""
    if isinstance(value, str) and _DURATION.fullmatch(value):
        return sum(float(number) * _UNIT_S[unit] for number, unit in _TERM.findall(value))
    if isinstance(value, str) and not re.fullmatch(r"\d+(\.\d+)?", value):
        raise ValueError('a duration such as "90s" or "5m" is needed')
    return value


def _bytes(value: object) -> object:
    """A size with a binary unit (``64m``) as bytes; a bare number is bytes."""
    if not isinstance(value, str):
        return value
    if (found := _SIZE.fullmatch(value.lower())) is None:
        raise ValueError('a size such as "67108864" or "64m" is needed')
    return int(found[1]) << _UNIT_SHIFT[found[2]]


def _merged(value: object) -> object:
    """One map out of the list of maps that an HCL block or map turns into."""
    if isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
        return {key: item for part in value for key, item in part.items()}
    return value


def _operating_system(value: object) -> object:
    """OCI names, and ``macos`` as people say it."""
    return "darwin" if value == "macos" else value


def _absolute(value: str) -> str:
    if not value.startswith("/") or "\0" in value:
        raise ValueError("an absolute path is needed")
    return value


def _absolute_if_any(value: str) -> str:
    return _absolute(value) if value else value


def _registry(value: str) -> str:
    if not value.strip() or "/" in value:
        raise ValueError(f"{value!r} is no registry: name it as host[:port]")
    return value


def _mirrors(value: Mapping[str, str]) -> Mapping[str, str]:
    for registry, hosts in value.items():
        for host in (registry, *hosts.split(",")):
            _registry(host)
    return value


def _address(value: str) -> str:
    try:
        return str(ip_address(value))
    except ValueError:
        raise ValueError("an IP address is needed") from None


def _subnet(version: int) -> Callable[[str], str]:
    def check(value: str) -> str:
        try:
            found = ip_network(value)
        except ValueError as error:
            raise ValueError(f"a subnet is needed ({error})") from None
        if found.version != version:
            raise ValueError(f"an IPv{version} subnet is needed")
        if found.num_addresses < 4:
            raise ValueError("a subnet of four addresses at least is needed")
        return str(found)

    return check


def _check_shares(network: str | None, shares: Sequence[str]) -> None:
    """Each lies within the network, and none overlaps another."""
    found = [ip_network(share) for share in shares]
    for place, share in enumerate(found):
        if network is None or not (whole := ip_network(network)).overlaps(share) or share.prefixlen < whole.prefixlen:
            raise ValueError(f"subnet {share} is not within the overlay's network {network or '(none)'}")
        if other := next((earlier for earlier in found[:place] if earlier.overlaps(share)), None):
            raise ValueError(f"subnets {other} and {share} overlap")


AbsolutePath = Annotated[str, AfterValidator(_absolute)]
# What is allowed by its name must be opened by that name: a «..» behind a link of the task's own would lead elsewhere.
NormalPath = Annotated[str, AfterValidator(_absolute), AfterValidator(posixpath.normpath)]
OptionalPath = Annotated[str, AfterValidator(_absolute_if_any)]
Duration = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]
Size = Annotated[int, BeforeValidator(_bytes), Field(ge=0)]
IpAddress = Annotated[str, AfterValidator(_address)]
Ipv4Subnet = Annotated[str, AfterValidator(_subnet(4))]
Ipv6Subnet = Annotated[str, AfterValidator(_subnet(6))]
StringMap = Annotated[dict[str, str], BeforeValidator(_merged)]
OperatingSystem = Annotated[OS, BeforeValidator(_operating_system)]
HostMode = Literal["", "host"]
MountType = Literal["bind", "tmpfs"]
Propagation = Literal["private", "rprivate", "rslave", "rshared"]


class Transport(StrEnum):
    """How the overlay's packets travel between nodes."""

    VXLAN = "vxlan"
    WIREGUARD = "wireguard"


class Block(BaseModel):
    """A config block: unknown keys are faults, values are frozen, and only text that is meant stays text.

    Its validator is built when it is first used: building them all would be a tenth of the start of a process.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, defer_build=True)


class AuthBlock(Block):
    username: str = Field(description="User name for the registry")
    password: str = Field(description="Password or token for the registry", repr=False)


class PlatformBlock(Block):
    os: OperatingSystem | None = Field(None, description="Operating system the image must run on: linux, windows or darwin")
    arch: str | None = Field(None, description="CPU architecture by its OCI name, such as amd64 or arm64")


class OverlayPeerBlock(Block):
    """Another node of the overlay, where no cluster keeps them."""

    name: str = Field(min_length=1, description="The peer's name, as people see it")
    endpoint: IpAddress = Field(description="Address at which this node reaches the peer")
    port: int = Field(0, ge=0, le=65535, description="UDP port at the endpoint; 0: the transport's own")
    subnet: Ipv4Subnet = Field(description="The peer's IPv4 subnet")
    subnet6: Ipv6Subnet | None = Field(None, description="The peer's IPv6 subnet")
    public_key: str = Field("", pattern=r"^([A-Za-z0-9+/]{43}=)?$", description="The peer's WireGuard key, in base64")


class OverlayNomadBlock(Block):
    """The Nomad in whose variable ``zlayer/overlay`` the nodes find each other; absent keys are the agent's NOMAD_* variables."""

    address: str = Field("", description="URL of Nomad's API")
    token: str = Field("", description="Token that may read and write the variable zlayer/overlay", repr=False)
    namespace: str = Field("", description="Namespace of the variable")


class OverlayBlock(Block):
    """This node in the overlay network. With it, the driver makes the networks of allocations."""

    name: str = Field("", description="This node's name in the overlay; empty: its host name")
    network: Ipv4Subnet = Field(description="The whole overlay, such as 10.88.0.0/16")
    network6: Ipv6Subnet | None = Field(None, description="The whole overlay in IPv6, such as fd88::/48; without it there is IPv4 only")
    subnet: Ipv4Subnet | None = Field(
        None, description="This node's share of it, such as 10.88.1.0/24; Nomad's to choose where it is asked"
    )
    subnet6: Ipv6Subnet | None = Field(None, description="This node's share in IPv6, such as fd88:0:0:1::/64")
    endpoint: IpAddress = Field(description="Address of this node at which its peers reach it")
    transport: Transport = Field(Transport.VXLAN, description="How packets travel between nodes: vxlan or wireguard")
    port: int = Field(0, ge=0, le=65535, description="UDP port of the transport; 0: 4789 for VXLAN, 51820 for WireGuard")
    vni: int = Field(4096, ge=1, lt=1 << 24, description="VXLAN network identifier, the same on all nodes")
    bridge: str = Field(
        "zlayer0",
        pattern=r"^[a-z][a-z0-9]{1,7}$",
        description="Name of the node's bridge, of at most 8 characters: all link names derive from it",
    )
    mtu: int = Field(0, ge=0, le=65535, description="MTU within the overlay; 0: what the underlay leaves")
    default_route: bool = Field(default=False, description="Whether containers send everything into the overlay, not only what is for it")
    masquerade: bool = Field(
        default=False, description="Whether what containers send beyond the overlay gets the node's address (needs default_route)"
    )
    publish: bool = Field(
        default=False, description="Whether the driver makes the ports of groups lead to their containers, where no CNI plugin does"
    )
    nomad: OverlayNomadBlock | None = Field(None, description="Has Nomad keep shares and peers, instead of this block")
    peer: list[OverlayPeerBlock] = Field([], description="The other nodes, where Nomad does not keep them")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Each family is whole: a share lies within the network, and shares do not overlap."""
        if self.masquerade and not self.default_route:
            raise ValueError("masquerade needs default_route: else nothing is sent beyond the overlay")
        if self.nomad:
            if self.subnet or self.subnet6 or self.peer:
                raise ValueError("with nomad, subnet, subnet6 and peer are Nomad's to say")
            return self
        if self.subnet is None:
            raise ValueError("subnet is needed where no nomad block is")
        if (self.network6 is None) != (self.subnet6 is None):
            raise ValueError("network6 and subnet6 belong together")
        for network, shares in (
            (self.network, [self.subnet, *(peer.subnet for peer in self.peer)]),
            (self.network6, [self.subnet6, *(peer.subnet6 for peer in self.peer)]),
        ):
            _check_shares(network, [share for share in shares if share])
        if self.transport is Transport.WIREGUARD and any(not peer.public_key for peer in self.peer):
            raise ValueError("under WireGuard every peer needs its public_key")
        if any(ip_address(peer.endpoint).version != ip_address(self.endpoint).version for peer in self.peer):
            raise ValueError("endpoints are all IPv4 or all IPv6")
        return self


class PluginConfig(Block):
    """``plugin "zlayer-driver" { config { … } }`` in the agent's file."""

    state_dir: AbsolutePath = Field("/var/lib/zlayer", description="Directory under which everything that the driver keeps lies")
    oci_runtime: str = Field(
        "", description="OCI runtime to use: a name or an absolute path; empty: the first of crun, runc, youki that works here"
    )
    primary: str = Field("", description="Backend behind target primary: podman, docker or one of a package; empty: this node's own")
    delegate: str = Field("", description="Backend of a package behind target delegate; empty: this node's own")
    vz: str = Field("", description="Backend of a package behind target vz; empty: this node's own")
    vz_linux: str = Field("", description="Backend of a package behind target vz_linux; empty: this node's own")
    engine_socket: OptionalPath = Field(
        "", description="Socket of the Podman or Docker engine; empty: /run/podman/podman.sock or /var/run/docker.sock"
    )
    allow_oci_runtimes: list[str] = Field([], description="OCI runtimes that a task may choose by its oci_runtime key")
    vm_kernel: str = Field(
        "",
        description="Directory with boot/vmlinuz-* and lib/modules of the guests' kernel; empty: /usr/local/lib/zlayer/kernel, else the node's",
    )
    fallback: list[Target] = Field([], description="Targets to try, in order, when a container cannot be created on the chosen one")
    caches: list[str] = Field([], description="Further blob caches (SQLite or redb files) to ask for an image's facts, in order")
    insecure_registries: list[Annotated[str, AfterValidator(_registry)]] = Field(
        [], description="Registries (host or host:port) to speak plain HTTP with; loopback addresses always may"
    )
    registry_auth_file: OptionalPath = Field(
        "", description="Docker config.json with credentials for registries, inline or by helpers; those of a task come first"
    )
    registry_ca_file: OptionalPath = Field("", description="PEM file with certificates to trust for registries besides the system's")
    registry_mirrors: Annotated[StringMap, AfterValidator(_mirrors)] = Field(
        {}, description="Hosts to ask before a registry, by its name, with commas between them"
    )
    allow_image_devices: bool = Field(default=False, description="Whether images may bring devices beyond null, zero, tty and their like")
    image_max_layers: int = Field(256, gt=0, description="Most layers of one image")
    image_max_layer_mb: int = Field(65536, gt=0, description="Most MiB that one layer may unpack to")
    image_max_layer_entries: int = Field(2_000_000, gt=0, description="Most files, directories and links of one layer")
    image_gc_delay: Duration = Field(0.0, description="Remove images that no task has used for so long; 0: keep them all")
    image_gc_keep: list[str] = Field([], description="Images that are never removed for want of use")
    image_pull_timeout: Duration = Field(300.0, description="How long a pull may take when the task does not say")
    allow_caps: list[str] = Field([], description='Capabilities that tasks may add, such as "net_admin"; "all" allows any')
    allow_privileged: bool = Field(default=False, description="Whether tasks may be privileged")
    allow_volumes: bool = Field(default=False, description="Whether tasks may bind host paths from outside their allocation")
    allow_devices: list[str] = Field([], description='Devices of the node that tasks may have, such as "/dev/fuse" or "/dev/nvidia*"')
    allow_host_namespaces: bool = Field(default=False, description="Whether tasks may share the node's pid, ipc and uts namespaces")
    allow_seccomp: bool = Field(default=False, description="Whether tasks may replace the system call filter, or do without")
    orphan_grace: Duration = Field(
        300.0,
        description="How long an agent has after its start to ask for its containers again, before those left over are removed; 0: for ever",
    )
    overlay: OverlayBlock | None = Field(None, description="The overlay network between nodes; without it there is none")


class BindOptions(Block):
    propagation: Propagation = Field("rprivate", description="How mounts below travel: rprivate, rslave or rshared")


class TmpfsOptions(Block):
    size: Size = Field(0, description="Most bytes in it; 0: half the node's memory")
    mode: int = Field(0o1777, ge=0, le=0o7777, description="Permissions, as a decimal number: 1023 is 1777 in octal")


class MountBlock(Block):
    """A mount of the task's own."""

    type: MountType = Field("bind", description="bind or tmpfs")
    target: AbsolutePath = Field(description="Where it is mounted in the container")
    source: str = Field("", description="What is bound; a relative source lies in the task directory")
    readonly: bool = Field(default=False, description="Whether it cannot be written to")
    bind_options: BindOptions = Field(BindOptions(), description="For a bind")
    tmpfs_options: TmpfsOptions = Field(TmpfsOptions(), description="For a tmpfs")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.type == "bind") != bool(self.source):
            raise ValueError("a bind has a source, and a tmpfs has none")
        return self


class DeviceBlock(Block):
    """A device of the node, if the operator allows it."""

    host_path: NormalPath = Field(description="The device on the node")
    container_path: AbsolutePath | None = Field(None, description="Its place in the container; the same if absent")
    cgroup_permissions: str = Field("rwm", pattern=r"^[rwm]{1,3}$", description="What the task may do: read, write, mknod")


class TaskConfig(Block):
    """``config { … }`` of a task with ``driver = "zlayer"``."""

    image: str = Field(
        min_length=1,
        description="Image reference, such as docker.io/library/alpine:3.20, or a file below the task directory, such as "
        "oci-archive:local/app.tar (also oci, docker-archive, tarball)",
    )
    entrypoint: list[str] | None = Field(None, description="Replaces the image's entrypoint, and drops its command")
    command: str | None = Field(None, description="Replaces the image's command")
    args: list[str] = Field([], description="Arguments after the command; without a command they replace the image's")
    work_dir: str = Field("", description="Working directory in the container")
    hostname: str = Field("", max_length=64, pattern=r"^[A-Za-z0-9._-]*$", description="Host name in the container")
    runtime: Isolation | None = Field(None, description="Isolation target: auto, sandbox, vz, vz-linux or vm")
    oci_runtime: str = Field("", description="OCI runtime for this task, if the operator allows it")
    platform: PlatformBlock | None = Field(None, description="What the image must run on, where its own config does not tell")
    labels: StringMap = Field({}, description="Container labels; com.zlayer.isolation chooses a target")
    force_pull: bool = Field(default=False, description="Ask the registry even if the image is here")
    image_pull_timeout: Duration | None = Field(None, description="How long the pull may take")
    auth: AuthBlock | None = Field(None, description="Credentials for the image's registry")
    cap_add: list[str] = Field([], description="Capabilities beyond the default set, if the operator allows them")
    cap_drop: list[str] = Field([], description='Capabilities to take away; "all" takes every one')
    privileged: bool = Field(default=False, description="All capabilities and devices, if the operator allows it")
    readonly_rootfs: bool = Field(default=False, description="Mount the root file system read-only")
    security_opt: list[str] = Field(
        [], description='"no-new-privileges"; "seccomp=unconfined" or "seccomp=<file>" (OCI format), if the operator allows it'
    )
    pids_limit: int = Field(0, ge=0, description="Most processes in the container; 0: no limit")
    cpu_hard_limit: bool = Field(default=False, description="Keep the task to its share of CPU even where more is idle")
    cpu_cfs_period: int = Field(100_000, ge=1000, le=1_000_000, description="Period of the hard CPU limit, in microseconds")
    memory_swap: Size | None = Field(None, description="Memory and swap together; absent: no swap beyond the memory")
    oom_score_adj: int = Field(0, ge=0, le=1000, description="How much sooner than others the task is killed when memory runs out")
    shm_size: Size = Field(64 << 20, gt=0, description="Size of /dev/shm")
    ulimit: StringMap = Field({}, description='Limits of setrlimit(2) by name, as "soft:hard" or one number for both; "-1" is unlimited')
    sysctl: StringMap = Field({}, description="Kernel settings of the container's own ipc and network namespaces")
    init: bool = Field(default=False, description="Run an init as process 1 that reaps children and passes signals on")
    group_add: list[str] = Field([], description="Further groups of the user, by name or number")
    pid_mode: HostMode = Field("", description='"host" shares the node\'s pid namespace, if the operator allows it')
    ipc_mode: HostMode = Field("", description='"host" shares the node\'s ipc namespace, if the operator allows it')
    uts_mode: HostMode = Field("", description='"host" shares the node\'s uts namespace, if the operator allows it')
    userns_mode: HostMode = Field("", description='"host": the node\'s user namespace, which every container is in')
    dns_servers: list[IpAddress] = Field([], description="Name servers, in place of the group's and the node's")
    dns_search_domains: list[str] = Field([], description="Domains to look short names up in")
    dns_options: list[str] = Field([], description="Resolver options, such as ndots:2")
    extra_hosts: list[str] = Field([], description="Further lines for /etc/hosts, as name:address")
    volumes: list[str] = Field([], description="Binds as source:target[:ro]; a relative source lies in the task directory")
    mount: list[MountBlock] = Field([], description="Binds and tmpfs mounts")
    mounts: list[MountBlock] = Field([], description="The same as mount, for jobs that were written so")
    devices: list[DeviceBlock] = Field([], description="Devices of the node, if the operator allows them")


def parse(model: type[Model], raw: Mapping[str, Any] | None, *, what: str) -> Model:
    """A validated block; every fault of it in one `ConfigError`. Keys whose value is ``None`` count as absent."""
    try:
        return model.model_validate(_without_nil(raw or {}))
    except ValidationError as error:
        faults = [f"{'.'.join(str(part) for part in fault['loc']) or what}: {_sentence(fault)}" for fault in error.errors()]
        raise ConfigError(f"{what} does not fit: {'; '.join(faults)}", hint="see the config reference") from error


def _without_nil(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nil(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nil(item) for item in value]
    return value


def _sentence(fault: Mapping[str, Any]) -> str:
    """What is wrong with a value, which is shown where it is a plain one: a whole block may hold secrets."""
    kind, given = str(fault["type"]), fault["input"]
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        return "is no known key"
    if needed := _NEEDED.get(kind.partition("_")[0]):
        text = f"{needed} is needed"
    else:
        text = str(fault["msg"]).removeprefix("Value error, ")
        text = re.sub("^(Input|String) should", "must", text)
    shown = isinstance(given, str | int | float) and kind != "model_type" and f"{given!r} is" not in text
    return f"{text[0].lower()}{text[1:]}, not {given!r}" if shown else text
