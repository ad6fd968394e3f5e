"""Logging as a Nomad agent reads it from a plugin's stderr: one JSON object a line, in hclog's keys."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime

_LEVELS = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warn", logging.ERROR: "error", logging.CRITICAL: "error"}
_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# The agent reads at most 64 KiB as one line; what is longer would come out as broken text.
_MAX_TEXT = 4096  # characters of a pair, of which no line has more than three long ones


class Handler(logging.Handler):
    """Writes to a file descriptor that it does not own. Keys given as ``extra`` become key/value pairs of the line."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(self._fd, line(record))
        except BrokenPipeError:
            pass  # the agent died; the plugin and its containers do not
        except Exception:  # noqa: BLE001  # the contract of a logging handler
            self.handleError(record)


def line(record: logging.LogRecord) -> bytes:
    """``@timestamp`` has microseconds and a zone: at any other form the agent shows the line raw."""
    pairs = {
        "@level": _LEVELS.get(record.levelno, "debug"),
        "@message": _cut(record.getMessage()),
        "@module": record.name,
        "@timestamp": datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    pairs |= {key: _cut(str(value)) for key, value in vars(record).items() if key not in _ORDINARY}
    if record.exc_info:
        pairs["traceback"] = _cut(logging.Formatter().formatException(record.exc_info))
    return json.dumps(pairs, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"  # half a surrogate pair as JSON has it


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT // 2]} … {text[-_MAX_TEXT // 2 :]}"
