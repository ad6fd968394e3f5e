"""Lines of a batch as Nomad jobs: what a job needs of a node becomes constraints, what it would rather have affinities.

Field names are those of Nomad's JSON job specification.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field

from zlayer_driver.choice import Request
from zlayer_driver.config import StringMap, TaskConfig, parse
from zlayer_driver.errors import ConfigError, DriverError, InvalidSpec
from zlayer_driver.model import IMAGES_ATTRIBUTE, ISOLATION_LABEL, ImageFacts, Isolation, Target
from zlayer_driver.nomad.batch import Chunk
from zlayer_driver.nomad.fleet import FleetNode
from zlayer_driver.nomad.placement import Answer, Facts, JobLine, id_of, parse_job, read_line, refusal, request_of
from zlayer_driver.nomad.scoring import Fleet, NoNode

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DEMANDS: Final = {Isolation.VZ: Target.VZ, Isolation.VZ_LINUX: Target.VZ_LINUX, Isolation.VM: Target.DELEGATE}
_WISHES: Final = {"vz": Target.VZ, "vz-linux": Target.VZ_LINUX, "vm": Target.DELEGATE, "libkrun": Target.DELEGATE}
_WISH_WEIGHT, _LOCAL_WEIGHT, _NODE_WEIGHT = 50, 50, 100
Json = dict[str, Any]


class SubmitLine(JobLine):
    """A line with what it needs to run, too."""

    config: dict[str, Any] = Field({}, description="Further keys of the task's config block, such as command and args")
    env: StringMap = Field({}, description="Environment variables")
    cpu: int | None = Field(None, ge=1, description="Processor share in MHz")
    memory: int | None = Field(None, ge=10, description="Memory in MiB")
    priority: int = Field(50, ge=1, le=100, description="Nomad's priority of the job; of a pack, the highest counts")


@dataclass(frozen=True, slots=True)
class Work:
    """A job that is to be submitted; ``node`` is the fleet's best for it, if a fleet was asked."""

    line: SubmitLine
    request: Request
    facts: ImageFacts
    node: FleetNode | None = None


def works(work: Iterable[Chunk], facts: Facts, fleet: Fleet | None) -> Iterator[Work | Answer]:
    """Each line as work, or as the answer that says what is wrong with it; an id counts once."""
    seen: set[str] = set()
    for chunk, first in work:
        for number, line in enumerate(bytes(chunk).removesuffix(b"\n").split(b"\n"), first):
            if not line.strip():
                continue
            document: dict[str, Any] = {}
            try:
                document = read_line(line)
                found = _work(document, facts, fleet)
                if found.line.id in seen:
                    raise InvalidSpec("an earlier line has this id")
            except DriverError as error:
                yield refusal(id_of(document), number, error)
            else:
                seen.add(found.line.id)
                yield found


def _work(document: Json, facts: Facts, fleet: Fleet | None) -> Work:
    line = parse_job(SubmitLine, document)
    task_config(line)
    request = request_of(line, line.id)
    known = facts(request.image)
    if fleet is None:
        return Work(line, request, known)
    need = fleet.need(request, known)
    placement = fleet.place(need)
    if placement is None:
        raise NoNode(need.refused)
    return Work(line, request, known, placement.node)


def name_of(text: str) -> str:
    """``text`` as part of a Nomad job's ID: itself, or for odd ones a prefix and a digest."""
    if _NAME.fullmatch(text):
        return text
    return f"{re.sub('[^A-Za-z0-9._-]+', '-', text)[:40]}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:12]}"


def task_config(line: SubmitLine) -> Json:
    """The task's config block; `InvalidSpec` if the driver would refuse it."""
    platform = line.platform.model_dump(mode="json", exclude_none=True) if line.platform else None
    own = {"image": line.image, "runtime": line.runtime, "labels": line.labels, "platform": platform}
    config = {**line.config, **{key: value for key, value in own.items() if value}}
    try:
        parse(TaskConfig, config, what="config")
    except ConfigError as error:
        raise InvalidSpec(error.message) from None
    return config


def nomad_job(batch: str, works: Sequence[Work]) -> Json:
    """One Nomad job with a group for each of ``works``, to be registered once and never altered."""
    ids = [work.line.id for work in works]
    name = name_of(ids[0]) if len(ids) == 1 else f"pack-{hashlib.sha256(repr(ids).encode()).hexdigest()[:16]}"
    return {
        "ID": f"{batch}-{name}",
        "Name": f"{batch}-{name}",
        "Type": "batch",
        "Datacenters": ["*"],
        "Priority": max(work.line.priority for work in works),
        "Meta": {"zlayer_batch": batch},
        "TaskGroups": [_group(work) for work in works],
    }


def group_name(work_id: str) -> str:
    return name_of(work_id)


def _group(work: Work) -> Json:
    line = work.line
    asked = {"CPU": line.cpu, "MemoryMB": line.memory}
    resources = {key: value for key, value in asked.items() if value}
    task = {
        "Name": "job",
        "Driver": "zlayer",
        "Config": task_config(line),
        "Env": line.env,
        **({"Resources": resources} if resources else {}),
    }
    return {
        "Name": group_name(line.id),
        "Count": 1,
        "Meta": {"zlayer_job": line.id},
        "Constraints": constraints(work.request, work.facts),
        "Affinities": affinities(work),
        "Tasks": [task],
    }


def constraints(request: Request, facts: ImageFacts) -> list[Json]:
    """What a node must have. The rules' demands only: a wish that no node can meet does not keep a job from running."""
    demand = _DEMANDS.get(request.runtime) if request.runtime else None
    os = (request.platform.os if request.platform else None) or facts.os
    found = []
    if demand is not None:
        found.append(_is_set(f"${{attr.driver.zlayer.target.{demand}}}"))
    elif os is not None:
        found.append(_is_set(f"${{attr.driver.zlayer.os.{os}}}"))
    if request.platform and request.platform.arch:
        found.append({"LTarget": "${attr.cpu.arch}", "Operand": "=", "RTarget": request.platform.arch})
    return found


def affinities(work: Work) -> list[Json]:
    """Where a job would rather run: where its image is, on the target that it wishes for, on the fleet's best node."""
    local = {
        "LTarget": f"${{attr.{IMAGES_ATTRIBUTE}}}",
        "Operand": "set_contains_any",
        "RTarget": work.request.image,
        "Weight": _LOCAL_WEIGHT,
    }
    found = [local]
    words = (work.request.labels.get(ISOLATION_LABEL), work.facts.isolation, work.facts.marker)
    wish = next((_WISHES[word.lower()] for word in words if word and word.isascii() and word.lower() in _WISHES), None)
    if wish is not None and work.request.runtime not in _DEMANDS:
        attribute = f"${{attr.driver.zlayer.target.{wish}}}"
        found.append({"LTarget": attribute, "Operand": "regexp", "RTarget": ".", "Weight": _WISH_WEIGHT})  # affinities know no is_set
    if work.node is not None:
        found.append({"LTarget": "${node.unique.id}", "Operand": "=", "RTarget": work.node.id, "Weight": _NODE_WEIGHT})
    return found


def _is_set(attribute: str) -> Json:
    return {"LTarget": attribute, "Operand": "is_set", "RTarget": ""}
