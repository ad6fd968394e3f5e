"""What Nomad hands over with a task, as values of `zlayer_driver.model`, and back. The driver's answers are in `replies`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgpack
from google.protobuf.duration_pb2 import Duration

from zlayer_driver.errors import ConfigError, InvalidSpec, Unsupported
from zlayer_driver.model import Device, GroupPort, Mount, Network, NetworkSpec, Resources, TaskRequest
from zlayer_driver.wire._gen import task_pb2 as task

MIB = 1 << 20
_MAX_DEPTH = 16
_PACKED = "it must be the MessagePack map that Nomad sends"
_Isolation = task.NetworkIsolationSpec.NetworkIsolationMode
_PROPAGATION = {"": "rprivate", "private": "rprivate", "host-to-task": "rslave", "bidirectional": "rshared"}
_NOMAD_PROPAGATION = {"rprivate": "private", "rslave": "host-to-task", "rshared": "bidirectional"}


def config_from(raw: bytes, *, what: str) -> dict[str, Any]:
    """A config block as Nomad encodes it; empty bytes and nil are a block without keys. `ConfigError` for anything but a map."""
    try:
        value = msgpack.unpackb(raw, strict_map_key=True) if raw else {}
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{what} cannot be read: {error}", hint=_PACKED) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{what} is a {type(value).__name__}, not a map of keys", hint=_PACKED)
    _refuse_nul(value, what)
    return value


def _refuse_nul(value: object, where: str) -> None:
    """No argument, path or variable of a process can hold a NUL."""
    for path, text in _texts(value, where):
        if "\0" in text:
            raise InvalidSpec(f"{path} holds a NUL character", hint="take it out")


def _texts(value: object, where: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    if depth > _MAX_DEPTH:
        raise ConfigError(f"{where} is nested deeper than {_MAX_DEPTH} levels", hint="no key of a config takes that")
    match value:
        case str():
            yield where, value
        case Mapping():
            for key, item in value.items():
                yield from _texts(key, where, depth)
                yield from _texts(item, f"{where}.{key}", depth + 1)
        case list() | tuple():
            for index, item in enumerate(value):
                yield from _texts(item, f"{where}[{index}]", depth + 1)
        case bytes():  # would be taken for text further on
            raise ConfigError(f"{where} is bytes, not text", hint=_PACKED)


def seconds(duration: Duration) -> float:
    """Never negative."""
    return max(0.0, duration.seconds + duration.nanos / 1e9)


def duration(value_s: float) -> Duration:
    made = Duration()
    made.FromNanoseconds(round(value_s * 1e9))
    return made


def request_from(config: task.TaskConfig) -> TaskRequest:
    """The task that ``config`` describes; `InvalidSpec` or `ConfigError` for what no driver could run."""
    _check_id(config.id)
    request = TaskRequest(
        id=config.id,
        name=config.name,
        config=config_from(config.msgpack_driver_config, what="config"),
        env=dict(config.env),
        user=config.user,
        resources=_resources(config.resources),
        mounts=tuple(_mount(mount) for mount in config.mounts),
        devices=tuple(Device(device.host_path, device.task_path, device.cgroup_permissions or "rwm") for device in config.devices),
        network=_network(config.network_isolation_spec, config.dns),
        alloc_dir=config.alloc_dir,
        stdout_path=config.stdout_path or "/dev/null",
        stderr_path=config.stderr_path or "/dev/null",
        alloc_id=config.alloc_id,
        group_name=config.task_group_name,
        job_name=config.job_name,
        job_id=config.job_id,
        namespace=config.namespace,
        node_name=config.node_name,
        node_id=config.node_id,
        ports=tuple(_port(port) for port in config.resources.ports),
    )
    _refuse_nul(dict(config.env), "env")
    _refuse_nul([config.user, config.alloc_dir, config.stdout_path, config.stderr_path], "task")
    return request


def _check_id(task_id: str) -> None:
    """An id is ``<alloc id>/<task>/<8 hex digits>``; what could lead a path astray is refused here, once for all backends."""
    parts = task_id.split("/")
    if not task_id or any(part in {"", ".", ".."} for part in parts) or not task_id.isprintable():
        raise InvalidSpec(f"{task_id[:100]!r} is no task id", hint="an id has the form <allocation>/<task>/<number>")


def _resources(resources: task.Resources) -> Resources:
    memory = resources.allocated_resources.memory
    linux = resources.linux_resources
    limit_mib = memory.memory_max_mb or memory.memory_mb
    return Resources(
        cpu_shares=linux.cpu_shares or resources.allocated_resources.cpu.cpu_shares,
        cpu_quota_us=linux.cpu_quota,
        cpu_period_us=linux.cpu_period or 100_000,
        cpuset_cpus=linux.cpuset_cpus,
        cpuset_group=linux.cpuset_cgroup,
        cpu_fraction=linux.PercentTicks,
        memory_bytes=0 if memory.memory_max_mb < 0 else linux.memory_limit_bytes or limit_mib * MIB,  # a maximum of -1 is none
        memory_reservation_bytes=memory.memory_mb * MIB if memory.memory_max_mb else 0,
        oom_score_adj=linux.oom_score_adj,
    )


def _mount(mount: task.Mount) -> Mount:
    propagation = _PROPAGATION.get(mount.propagation_mode)
    if propagation is None:
        raise InvalidSpec(
            f"mount of {mount.task_path!r} has propagation mode {mount.propagation_mode!r}",
            hint="the modes are private, host-to-task and bidirectional",
        )
    _refuse_nul([mount.task_path, mount.host_path], "mount")
    return Mount(target=mount.task_path, source=mount.host_path, read_only=mount.readonly, propagation=propagation)


def _port(port: task.PortMapping) -> GroupPort:
    """A ``to`` of 0 or less is the same port within."""
    return GroupPort(port.label, port.value, port.to if port.to > 0 else port.value, port.host_ip)


def _network(spec: task.NetworkIsolationSpec, dns: task.DNSConfig) -> Network:
    """An absent spec is the host's network."""
    hosts = spec.hostsConfig
    return Network(
        mode=_network_mode(spec),
        netns_path=spec.path,
        hostname=hosts.hostname,
        dns_servers=tuple(dns.servers),
        dns_searches=tuple(dns.searches),
        dns_options=tuple(dns.options),
        extra_hosts=((hosts.hostname, hosts.address),) if hosts.hostname and hosts.address else (),
    )


def _network_mode(spec: task.NetworkIsolationSpec) -> str:
    match spec.mode:
        case _Isolation.HOST:
            return "host"
        case _Isolation.NONE:
            return "none"
        case _Isolation.GROUP if spec.path:
            return "path"
        case _Isolation.GROUP:
            raise InvalidSpec("the group's network has no namespace path", hint="the Nomad client must make the network first")
        case _:
            raise Unsupported('network mode "driver" is not available', hint='use "host", "bridge", "cni/<name>" or "none"')


def config_for(request: TaskRequest, packed: bytes) -> task.TaskConfig:
    """The message of ``request``, with its config block already packed."""
    return task.TaskConfig(
        id=request.id,
        name=request.name,
        msgpack_driver_config=packed,
        env=request.env,
        resources=_nomad_resources(request),
        mounts=[
            task.Mount(
                task_path=mount.target,
                host_path=mount.source,
                readonly=mount.read_only,
                propagation_mode=_NOMAD_PROPAGATION[mount.propagation],
            )
            for mount in request.mounts
        ],
        devices=[
            task.Device(task_path=device.container_path, host_path=device.host_path, cgroup_permissions=device.permissions)
            for device in request.devices
        ],
        user=request.user,
        alloc_dir=request.alloc_dir,
        stdout_path=request.stdout_path,
        stderr_path=request.stderr_path,
        task_group_name=request.group_name,
        job_name=request.job_name,
        alloc_id=request.alloc_id,
        network_isolation_spec=_nomad_network(request.network),
        dns=_nomad_dns(request.network),
        job_id=request.job_id,
        namespace=request.namespace,
        node_name=request.node_name,
        node_id=request.node_id,
    )


def _nomad_resources(request: TaskRequest) -> task.Resources:
    resources = request.resources
    memory = task.AllocatedMemoryResources(memory_mb=resources.memory_bytes // MIB)
    if resources.memory_reservation_bytes:
        memory = task.AllocatedMemoryResources(
            memory_mb=resources.memory_reservation_bytes // MIB, memory_max_mb=resources.memory_bytes // MIB
        )
    return task.Resources(
        allocated_resources=task.AllocatedTaskResources(cpu=task.AllocatedCpuResources(cpu_shares=resources.cpu_shares), memory=memory),
        linux_resources=task.LinuxResources(
            cpu_shares=resources.cpu_shares,
            cpu_quota=resources.cpu_quota_us,
            cpu_period=resources.cpu_period_us,
            cpuset_cpus=resources.cpuset_cpus,
            cpuset_cgroup=resources.cpuset_group,
            PercentTicks=resources.cpu_fraction,
            memory_limit_bytes=resources.memory_bytes,
            oom_score_adj=resources.oom_score_adj,
        ),
        ports=[
            task.PortMapping(label=port.label, value=port.host_port, to=port.container_port, host_ip=port.host_address)
            for port in request.ports
        ],
    )


def allocation_network(made: NetworkSpec) -> task.NetworkIsolationSpec:
    """Nomad hands it back with every task of the allocation."""
    hosts = task.HostsConfig(hostname=made.hostname, address=made.address) if made.hostname else None
    return task.NetworkIsolationSpec(mode=_Isolation.GROUP, path=made.path, hostsConfig=hosts)


def _nomad_network(network: Network) -> task.NetworkIsolationSpec | None:
    if network.mode == "host":
        return None
    spec = task.NetworkIsolationSpec(mode=_Isolation.NONE if network.mode == "none" else _Isolation.GROUP, path=network.netns_path)
    for hostname, address in network.extra_hosts[:1]:
        spec.hostsConfig.hostname = hostname
        spec.hostsConfig.address = address
    return spec


def _nomad_dns(network: Network) -> task.DNSConfig | None:
    if not (network.dns_servers or network.dns_searches or network.dns_options):
        return None
    return task.DNSConfig(servers=network.dns_servers, searches=network.dns_searches, options=network.dns_options)
