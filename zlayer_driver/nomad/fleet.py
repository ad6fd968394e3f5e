"""The nodes of a cluster, as Nomad's API or a file tells of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zlayer_driver import fastpath
from zlayer_driver.choice import NodeShape
from zlayer_driver.errors import ConfigError
from zlayer_driver.model import IMAGES_ATTRIBUTE, OS, Target
from zlayer_driver.nomad.client import Nomad, in_parallel

_DRIVER = "zlayer"
_TARGET = "driver.zlayer.target."
_GIVE = "give what /v1/nodes or /v1/node/ID answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetNode:
    """A node as Nomad tells of it. ``why_not`` says why no job at all can go there, and is empty where one can."""

    id: str
    name: str
    shape: NodeShape | None = None
    arch: str = ""
    cores: int = 1
    images: frozenset[str] = frozenset()
    why_not: str = ""


def parse_node(node: Mapping[str, Any], where: str = "the answer") -> FleetNode:
    """A node of Nomad's ``/v1/nodes`` or ``/v1/node/ID``; only the latter tells all attributes."""
    try:
        driver = (node.get("Drivers") or {}).get(_DRIVER) or {}
        attributes = {**(node.get("Attributes") or {}), **(driver.get("Attributes") or {})}
        resources = node.get("NodeResources") or {}
        return FleetNode(
            id=str(node["ID"]),
            name=str(node.get("Name") or node["ID"]),
            shape=_shape(attributes),
            arch=str(attributes.get("cpu.arch", "")),
            cores=max(1, int((resources.get("Cpu") or {}).get("TotalCpuCores") or 1)),
            images=frozenset(
                fastpath.canonical(image.strip()) for image in str(attributes.get(IMAGES_ATTRIBUTE, "")).split(",") if image.strip()
            ),
            why_not=_why_not(node, driver),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where} has what is no node as Nomad describes one: {error!r}", hint=_GIVE) from error


def _shape(attributes: Mapping[str, Any]) -> NodeShape | None:
    native = attributes.get("driver.zlayer.native_os")
    if native is None:
        return None
    named = {key.removeprefix(_TARGET) for key, backend in attributes.items() if key.startswith(_TARGET) and backend}
    return NodeShape(OS(native), frozenset({Target.PRIMARY, *(target for target in Target if target in named)}))


def _why_not(node: Mapping[str, Any], driver: Mapping[str, Any]) -> str:
    if node.get("Status", "ready") != "ready":
        return f"is {node['Status']}"
    if node.get("Drain") or node.get("DrainStrategy"):
        return "is draining"
    if node.get("SchedulingEligibility", "eligible") != "eligible":
        return "is not eligible"
    if not driver.get("Detected"):
        return "has no zlayer driver"
    if not driver.get("Healthy"):
        return "has an unhealthy zlayer driver"
    return ""


def read_fleet(path: Path) -> list[FleetNode]:
    """Nodes from a file: a JSON array or one object a line, as Nomad's API gives them."""
    try:
        text = path.read_text("utf-8")
        found = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON: {error}", hint=_GIVE) from error
    return [parse_node(node, str(path)) for node in found]


async def ask_fleet(nomad: Nomad) -> list[FleetNode]:
    """All nodes; those with the driver are asked for what the list leaves out."""
    found = [node async for node in nomad.pages("/v1/nodes", resources="true")]
    wanted = [node["ID"] for node in found if parse_node(node).shape]
    replies = await in_parallel(lambda name: nomad.get(f"/v1/node/{name}"), wanted)
    details = dict(zip(wanted, (reply.value for reply in replies), strict=True))
    return [parse_node(details.get(node["ID"], node)) for node in found]
