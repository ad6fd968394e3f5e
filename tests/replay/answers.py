"""What recording runtimes answer by a row's program, for those who work out what should have come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tests.replay.recorder import HEARD, Heard
from tests.replay.words import Json, Row, displayed, error_told, programmed, task_id
from zlayer_driver.model import Target

_USUAL: Final = {heard.name: heard.usual for heard in HEARD.values() if isinstance(heard, Heard)}
_U64_MAX: Final = 2**64 - 1


def answer(row: Row, role: str, method: str, turn: int = 0) -> Json:
    """The ``turn``-th answer of a runtime, as a result."""
    if method == "image_store_handles":
        return {"ok": role if role in row["handles_on"] else None}
    items = row["program"].get(role, {}).get(method)
    if not items:
        return {"ok": _USUAL[method](1 + list(Target).index(Target(role)), role) if method in _USUAL else None}
    item = items[min(turn, len(items) - 1)]
    return {"err": error_told(programmed(item["err"]), "")} if "err" in item else item


def missing(name: str) -> Json:
    """The result of a call on a container that there is no record of."""
    reason = "no dispatch record in CompositeRuntime"
    message = f"Container '{name}' not found: {reason}"
    return {"err": {"kind": "NotFound", "container": name, "reason": reason, "message": message}}


def unsupported(method: str) -> Json:
    """The result of a call that the reference forwards to nobody."""
    text = f"{method} is not supported by this runtime"
    return {"err": {"kind": "Unsupported", "text": text, "message": f"Operation not supported by this runtime: {text}"}}


def of_owner(row: Row) -> Json:
    trace = [{"rt": row["owner"], "m": row["call"]["m"], "args": {"id": displayed(task_id(row["id"]))}}]
    return {"result": answer(row, row["owner"], row["call"]["m"]), "trace": trace}


def of_first(row: Row, roles: Sequence[str]) -> Json:
    """One runtime after the other, until one has an answer; else the first error, or nothing."""
    results: list[Json] = []
    for role in roles:
        results.append(answer(row, role, row["call"]["m"]))
        nothing = row["call"]["m"] == "image_store_handles" and results[-1]["ok"] is None
        if "ok" in results[-1] and not nothing:
            return {"result": results[-1], "trace": _noted(row, roles[: len(results)])}
    return {"result": results[0], "trace": _noted(row, roles)}


def of_everybody(row: Row, roles: Sequence[str]) -> Json:
    """All runtimes; one answer is enough."""
    results = [answer(row, role, row["call"]["m"]) for role in roles]
    return {"result": next((result for result in results if "ok" in result), results[0]), "trace": _noted(row, roles)}


def of_pruning(row: Row, roles: Sequence[str]) -> Json:
    """All runtimes, their results together; a primary that fails at it ends it, unless it cannot prune and is not alone."""
    results = [answer(row, role, row["call"]["m"]) for role in roles]
    if (failed := results[0].get("err")) and (failed["kind"] != "Unsupported" or len(results) == 1):
        return {"result": results[0], "trace": _noted(row, roles[:1])}
    done = [result["ok"] for result in results if result.get("ok")]
    together = {
        "deleted": [image for one in done for image in one["deleted"]],
        "space_reclaimed": min(sum(one["space_reclaimed"] for one in done), _U64_MAX),
    }
    return {"result": {"ok": together if row["call"]["m"] == "prune_images" else None}, "trace": _noted(row, roles)}


def _noted(row: Row, roles: Sequence[str]) -> list[Json]:
    args: Mapping[str, Json] = row["call"]["args"]
    return [{"rt": role, "m": row["call"]["m"], "args": args} for role in roles]
