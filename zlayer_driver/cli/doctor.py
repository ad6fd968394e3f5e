"""``zlayer-driver doctor``: what a node's operator most often has to mend, each with its cure."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from zlayer_driver import backends, fastpath
from zlayer_driver.backends.supervised.security import is_capability
from zlayer_driver.cli.agent_config import META, PLUGIN, AgentConfig
from zlayer_driver.cli.nodes import on_node
from zlayer_driver.cli.output import command, show_rows
from zlayer_driver.config import OverlayBlock, OverlayNomadBlock, PluginConfig, Transport
from zlayer_driver.errors import CacheError, DriverError, InvalidReference, NomadError
from zlayer_driver.host import cgroups, mounts
from zlayer_driver.image.registry import is_loopback
from zlayer_driver.model import Health, Target
from zlayer_driver.node import Node
from zlayer_driver.nomad.client import Nomad
from zlayer_driver.nomad.membership import access
from zlayer_driver.nomad.roster import PATH

_FREE_BYTES = 1 << 30
_CONNECT_S = 3.0
_NOMAD_CURE = "see that the agent is there, and correct overlay.nomad"
_CONTROLLERS = ("memory", "cpu", "pids")
Row = Mapping[str, Any]


@click.command()
@click.pass_context
@command
def doctor(context: click.Context, as_json: bool) -> None:
    """Say what this node can run, and what is amiss with it or its configuration and what to do.

    Exits with 1 if the primary target cannot run anything.
    """
    config: PluginConfig = context.obj
    rows = on_node(config, _targets)
    healthy = rows[0]["state"] is Health.HEALTHY
    slow = "" if fastpath.IMPLEMENTATION == "compiled" else "placing and probing caches are slow: install again with a C compiler"
    rows.append({"what": "fastpath", "state": fastpath.IMPLEMENTATION, "backend": None, "detail": slow})
    checks = dict(_checks(config, context.meta[META]))
    rows += [{"what": what, "state": "amiss" if amiss else "ok", "backend": None, "detail": amiss} for what, amiss in checks.items()]
    show_rows(rows, as_json=as_json)
    if not healthy:
        raise click.exceptions.Exit(1)


async def _targets(node: Node) -> list[Row]:
    probes = await node.probe()
    rows: list[Row] = [
        {"what": f"target {target}", "state": probe.health, "backend": node.backends[target].name, "detail": probe.description}
        for target, probe in probes.items()
    ]
    absent = [target for target in Target if target not in probes]
    return rows + [
        {"what": f"target {target}", "state": Health.UNDETECTED, "backend": None, "detail": backends.absence(target, node.config)}
        for target in absent
    ]


def _checks(config: PluginConfig, agent: AgentConfig | None) -> Iterator[tuple[str, str]]:
    """What was looked at, and what is amiss with it and how to mend it; empty where nothing is."""
    yield "user", "" if os.geteuid() == 0 else "containers need root: run the Nomad agent, and this, as root"
    yield f"state directory {config.state_dir}", _state_dir(Path(config.state_dir))
    yield "control groups", _control_groups(cgroups.trees())
    if agent is not None:
        yield "plugin directory", _plugin_dir(agent.plugin_dir)
    for name, fault in backends.faults().items():
        yield f"backend {name}", fault
    yield from _values(config)
    if config.overlay:
        yield from _overlay(config.overlay)


def _values(config: PluginConfig) -> Iterator[tuple[str, str]]:
    """The keys whose values may fit and still lead nowhere."""
    for name in config.allow_oci_runtimes:
        yield f"allow_oci_runtimes {name}", "" if shutil.which(name) else "is not on the PATH: install it, or take it from the list"
    for name in config.allow_caps:
        yield f"allow_caps {name}", _capability(name)
    for image in config.image_gc_keep:
        yield f"image_gc_keep {image}", _reference(image)
    for target in config.fallback:
        yield f"fallback {target}", backends.absence(target, config) if target is not Target.PRIMARY else ""
    for path in config.caches:
        yield f"caches {path}", _cache(path)
    for mirror in dict.fromkeys(host.strip() for hosts in config.registry_mirrors.values() for host in hosts.split(",")):
        yield f"registry_mirrors {mirror}", _mirror(mirror, plain=mirror in config.insecure_registries or is_loopback(mirror))
    if config.registry_auth_file:
        yield "registry_auth_file", _auth_file(Path(config.registry_auth_file))
    if config.registry_ca_file:
        yield "registry_ca_file", _certificates(config.registry_ca_file)


def _overlay(block: OverlayBlock) -> Iterator[tuple[str, str]]:
    yield "overlay endpoint", _endpoint(block)
    if block.transport is Transport.WIREGUARD:
        have = shutil.which("wireguard-go") or Path("/sys/module/wireguard").exists()
        lack = "neither wireguard-go nor the kernel's WireGuard is here: install the one, `modprobe wireguard`, or set transport to vxlan"
        yield "overlay transport", "" if have else lack
    if block.nomad:
        yield "overlay nomad", asyncio.run(_nomad(block.nomad))


def _state_dir(path: Path) -> str:
    """Tried for real, since whether overlayfs takes a directory as its upper layer depends on file system, options and kernel."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path).free
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=path) as trial:
            lower, upper, work, target = (Path(trial, name) for name in ("lower", "upper", "work", "target"))
            for part in (lower, upper, work, target):
                part.mkdir()
            if os.geteuid() == 0:
                mounts.overlay(target, lower=[lower], upper=upper, work=work)
                mounts.unmount(target)
    except OSError as error:
        return f"{path} cannot hold containers: {error.strerror}; set state_dir to a directory on a local disk (ext4, xfs)"
    return "" if free >= _FREE_BYTES else f"{path} has {free >> 20} MiB left: images need room; free some, or set image_gc_delay"


def _control_groups(trees: cgroups.Trees) -> str:
    missing = [name for name in _CONTROLLERS if name not in trees.v1 and name not in trees.v2_controllers()]
    return f"limits on {' and '.join(missing)} do nothing: enable these controllers on the kernel's command line" if missing else ""


def _plugin_dir(plugin_dir: str) -> str:
    if not plugin_dir:
        return f"the agent's configuration names none: see `{PLUGIN} install`"
    program = Path(plugin_dir, PLUGIN)
    if os.access(program, os.X_OK):
        return ""
    return f"{program} is not there or cannot be executed: `{PLUGIN} install --plugin-dir {plugin_dir}` puts it there"


def _cache(path: str) -> str:
    try:
        fastpath.BlobCache(Path(path)).close()
    except CacheError as error:
        return f"{error}: correct the path, or take it from caches"
    return ""


def _auth_file(path: Path) -> str:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        return f"{path} cannot be read as JSON: {error}; make it by `docker login` or `podman login`"
    if not isinstance(document, dict):
        return f"{path} is no object: make it by `docker login` or `podman login`"
    helpers = {document.get("credsStore"), *dict(document.get("credHelpers") or {}).values()} - {None, ""}
    missing = sorted(f"docker-credential-{name}" for name in helpers if not shutil.which(f"docker-credential-{name}"))
    return f"{path} names {' and '.join(missing)}, not on the PATH: install it" if missing else ""


def _certificates(path: str) -> str:
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        return f"{path} holds no certificates: {error}; it needs PEM"
    return ""


def _capability(name: str) -> str:
    return "" if is_capability(name) else 'is no capability: use names such as "net_admin", or "all"'


def _reference(image: str) -> str:
    try:
        fastpath.parse(image)
    except InvalidReference as error:
        return f"{error}; correct it, or take it from image_gc_keep"
    return ""


def _mirror(host: str, *, plain: bool) -> str:
    try:
        at = urlsplit(f"//{host}")
        socket.create_connection((at.hostname or "", at.port or (80 if plain else 443)), _CONNECT_S).close()
    except (OSError, ValueError) as error:
        return f"cannot be reached: {error}; correct registry_mirrors, or start it"
    return ""


async def _nomad(block: OverlayNomadBlock) -> str:
    try:
        async with Nomad(access(block, os.environ)) as nomad:
            await nomad.get(f"/v1/var/{PATH}")
    except NomadError as error:
        return "" if error.status == HTTPStatus.NOT_FOUND else f"{error.message}: {_NOMAD_CURE}"  # no node has joined yet
    except DriverError as error:
        return f"{error.message}: {_NOMAD_CURE}"
    return ""


def _endpoint(block: OverlayBlock) -> str:
    address = block.endpoint
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as trial:
            trial.bind((address, 0))
    except OSError as error:
        return f"{address} is no address of this node: {error.strerror}; set overlay.endpoint to one that its peers reach"
    for network in (block.network, block.network6):
        if network and ip_address(address) in ip_network(network):
            return f"{address} lies within the overlay's own network {network}: give the overlay addresses that nothing else has"
    return ""
