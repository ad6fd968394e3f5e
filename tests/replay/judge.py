"""From what was observed to a verdict: equal to the recording, equal to what a deviation gives instead, or failed."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Callable, Coroutine, Mapping

from tests.replay.outcome import Outcome, Verdict
from tests.replay.words import Json, Row

Observed = Mapping[str, Json]
Instead = Callable[[Row, Observed], Observed | None]
"""What a deviation gives in place of a recording, which it may read; ``None`` where it has nothing to say on the row."""


def verdict(
    runner: asyncio.Runner, row: Row, recorded: Observed, play: Coroutine[None, None, Observed], deviations: Mapping[Verdict, Instead]
) -> Outcome:
    """Plays the row and compares. A row that breaks the replay has failed, whatever broke; the others go on."""
    case = str(row["case"])
    try:
        return _compared(case, row, recorded, runner.run(play), deviations)
    except Exception:  # noqa: BLE001  # reported whole
        return Outcome(case, "failed", traceback.format_exc())


def _compared(case: str, row: Row, recorded: Observed, observed: Observed, deviations: Mapping[Verdict, Instead]) -> Outcome:
    if observed == recorded:
        return Outcome(case, "passed")
    for name, instead in deviations.items():
        if observed == instead(row, recorded):
            return Outcome(case, name)
    return Outcome(case, "failed", "\n".join(_differences(recorded, observed)))


def _differences(recorded: Observed, observed: Observed) -> list[str]:
    keys = [key for key in {**recorded, **observed} if recorded.get(key) != observed.get(key)]
    return [f"{key}: recorded {_shown(recorded.get(key))}, observed {_shown(observed.get(key))}" for key in keys]


def _shown(value: Json) -> str:
    return json.dumps(value, sort_keys=True, default=str)
