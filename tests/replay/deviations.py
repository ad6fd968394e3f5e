"""Where this project gives a safer answer than the recordings on purpose: each rule says what it gives instead, and on which rows.

====  ==========================================================================================
D1    a re-create that fails leaves the earlier container reachable
D2    no registry is asked for a fact that the caches do not have
D3    a pull of an image that is here already learns all three facts
D4    facts are found by canonical reference, however an image is spelled
D5    names never leave the store; blobs are checked against their digest
D6    when a fallback fails too, its error carries the first one as its cause
D7    calls on images go on to every target
D8    calls that the reference forwards to nobody go to who can serve them
D9    of damaged documents, a clean miss is as good as the reference's answer
D10   a primary whose operating system is Linux (no recording is of one)
====  ==========================================================================================

D5 and D9 are in the sets of `inspect_`, `redb` and `redb_corrupt`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from tests.replay import answers
from tests.replay.answers import answer
from tests.replay.judge import Instead, Observed
from tests.replay.outcome import Verdict
from tests.replay.words import Row, displayed, error_told, facts_of, spec_of, task_id
from zlayer_driver import fastpath
from zlayer_driver.choice import NodeShape, Request, choose
from zlayer_driver.errors import DriverError
from zlayer_driver.model import OS, Target

_UNKNOWN: Final = {"os": None, "marker": None, "isolation": None}


def facts_by_canonical_reference(row: Row, recorded: Observed) -> Observed | None:
    """D4: one image in two spellings. The facts of the pulled one are the created one's, and decide."""
    if row["group"] != "spelling" or fastpath.canonical(row["pulled"]) != fastpath.canonical(row["spec"]["image"]):
        return None
    if recorded != {**recorded, **_decision(row, _UNKNOWN)}:
        return None
    return {**recorded, **_decision(row, row["facts_for_pulled"])}


def _decision(row: Row, facts: Row) -> Observed:
    """What becomes of the row's create where these facts are known."""
    spec = spec_of(task_id(row["id"]), row["spec"])
    request = Request(service=spec.service, image=spec.image, runtime=spec.runtime, labels=spec.labels, platform=spec.platform)
    told = {"facts_for_created": facts}
    try:
        target = choose(request, facts_of(facts), NodeShape(OS.DARWIN, frozenset(map(Target, row["attached"])))).target
    except DriverError as error:
        return {**told, "target": None, "result": {"err": error_told(error, spec.image)}, "trace": []}
    call = {"rt": target, "m": "create_container", "args": {"id": displayed(spec.id), "image": spec.image}}
    return {**told, "target": target, "result": {"ok": None}, "trace": [call]}


def all_facts_when_present(row: Row, recorded: Observed) -> Observed | None:
    """D3: the image was listed, so that the reference learnt its operating system alone."""
    if "call" not in row or row["call"]["args"].get("policy") != "if_not_present":
        return None
    known = _cached(row)
    if recorded["facts_after"] != {**_UNKNOWN, "os": known["os"]}:
        return None
    return {**recorded, "facts_after": known}


def no_registry_for_facts(row: Row, recorded: Observed) -> Observed | None:
    """D2: the reference asked the registry, twice, for each fact that no cache has. What the caches say is all there is to say."""
    if row.get("group") != "network":
        return None
    absent = [name for name in ("marker", "isolation") if _cached(row)[name] is None]
    if (recorded["connections"], recorded["registry_contacted"]) != (2 * len(absent), bool(absent)):
        return None
    return {**recorded, "connections": 0, "registry_contacted": False}


def _cached(row: Row) -> Observed:
    """All facts that the caches of a pull's row hold."""
    if row.get("group") != "network":
        return dict(row["cache"].get(row["call"]["args"]["image"], _UNKNOWN))
    here = row["caches"] > 0 and row["in_last_cache"]
    return {
        "os": "linux" if here and row["config_has_os"] else None,
        "marker": "vz" if here and row["manifest_has_marker"] else None,
        "isolation": "vm" if here and row["config_has_isolation"] else None,
    }


def first_error_as_cause(row: Row, recorded: Observed) -> Observed:
    """D6: where the fallback failed too, the error of the target before it."""
    turns: Counter[str] = Counter()
    steps = []
    for step in recorded["steps"]:
        failed = []
        for role in (call["rt"] for call in step["trace"] if call["m"] == "create_container"):
            failed.append(answer(row, role, "create_container", turns[role]).get("err"))
            turns[role] += 1
        lost = len(failed) > 1 and "err" in step["result"]
        steps.append({**step, "cause": failed[0] if lost else None})
    return {"steps": steps}


def record_kept(row: Row, recorded: Observed) -> Observed | None:
    """D1: after a failed re-create the earlier container has its record still, and answers, until it is removed."""
    owners: dict[str, str] = {}
    kept: dict[str, str] = {}
    steps = []
    for call, recorded_step in zip(row["steps"], first_error_as_cause(row, recorded)["steps"], strict=True):
        step, method = dict(recorded_step), call["call"]["m"]
        name = displayed(task_id(call["call"].get("id") or row["id"]))
        if method == "create_container" and "ok" in step["result"]:
            owners[name] = step["dispatch_after"][name]
        elif method == "create_container" and name in owners:
            kept[name] = owners[name]
        elif owner := kept.get(name):
            if (step["result"], step["trace"]) != (answers.missing(name), []):
                return None
            step["result"] = answer(row, owner, method)
            step["trace"] = [{"rt": owner, "m": method, "args": {"id": name}}]
            if method == "remove_container":
                del kept[name], owners[name]
        step["dispatch_after"] = {**step["dispatch_after"], **kept}
        steps.append(step)
    return {"steps": steps}


def on_to_every_target(row: Row, recorded: Observed) -> Observed | None:
    """D7: removing asks all targets; the rest asks one after the other until one answers. The reference knows of two targets."""
    if row.get("group") not in {"image_op", "store_handles"}:
        return None
    method, asked = row["call"]["m"], [role for role in row["attached"] if role in {"primary", "delegate"}]
    rule = answers.of_pruning if method == "prune_images" else answers.of_first
    if recorded != {**recorded, **rule(row, asked)}:
        return None
    return {**recorded, **(answers.of_everybody if method == "remove_image" else rule)(row, row["attached"])}


def forwarded(row: Row, recorded: Observed) -> Observed | None:
    """D8: a call on a container goes to its owner, one on the whole node to the targets."""
    if row.get("group") != "forward":
        return None
    method = row["call"]["m"]
    if method == "list_containers" and recorded["result"] == {"ok": 0}:
        return {**recorded, "result": {"ok": len(row["dispatch_after"])}}
    if recorded != {**recorded, "result": answers.unsupported(method), "trace": []}:
        return None
    if method == "prune_containers" or "image" in method:
        rule = answers.of_pruning if method == "prune_containers" else answers.of_first
        return {**recorded, **rule(row, row["attached"])}
    missing = {"result": answers.missing(displayed(task_id(row["id"])))}
    return {**recorded, **(answers.of_owner(row) if row["owner"] else missing)}


OF_DISPATCH: Final[Mapping[Verdict, Instead]] = {"D4": facts_by_canonical_reference}
OF_FALLBACK: Final[Mapping[Verdict, Instead]] = {"D6": first_error_as_cause, "D1": record_kept}
OF_PULL: Final[Mapping[Verdict, Instead]] = {"D3": all_facts_when_present, "D2": no_registry_for_facts}
OF_LIFECYCLE: Final[Mapping[Verdict, Instead]] = {"D7": on_to_every_target, "D8": forwarded}
