"""What manifests, configs and sidecars say, read as strictly as their writers type them.

A document is UTF-8 JSON of at most 4 MiB and 127 levels, with finite numbers and whole surrogate pairs. A field that the writer's types know
must have its type and stand there once; other fields may hold anything. Whatever does not fit is unreadable as a whole (`Unreadable`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from zlayer_driver.model import ISOLATION_LABEL, OS, RUNTIME_ANNOTATION

MAX_DOCUMENT_BYTES = 4 << 20
MAX_DEPTH = 127

Check = Callable[[Any], bool]

_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{\]}]', re.DOTALL)
_OS_BY_NAME = {os.value: os for os in OS}


class Unreadable(ValueError):
    """A document that does not fit its type."""


class _Number(str):
    """The text of a JSON number: how it is spelt decides whether it is an integer."""

    __slots__ = ()


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys stood there twice; the last value is kept."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__()
        self.repeated: set[str] = set()
        for key, value in pairs:
            if key in self:
                self.repeated.add(key)
            self[key] = value


def _number(text: str) -> _Number:
    if math.isinf(float(text)):
        raise Unreadable(f"number out of range: {text[:20]}")
    return _Number(text)


def _constant(text: str) -> NoReturn:
    raise Unreadable(f"{text} is no JSON value")


def _too_deep(text: str) -> bool:
    depth = 0
    for piece in _STRUCTURE.findall(text):
        depth += 1 if piece in "[{" else -1 if piece in "]}" else 0
        if depth > MAX_DEPTH:
            return True
    return False


def _load(raw: bytes) -> Any:
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise Unreadable("document is larger than 4 MiB")
    try:
        text = raw.decode()
        if text.count("[") + text.count("{") > MAX_DEPTH and _too_deep(text):
            raise Unreadable("document is nested too deeply")
        value = json.loads(text, object_pairs_hook=_Object, parse_float=_number, parse_int=_number, parse_constant=_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate cannot be encoded
    except ValueError as error:
        raise Unreadable(str(error)) from error
    return value


def _text(value: Any) -> bool:
    return type(value) is str


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _text_map(value: Any) -> bool:
    return isinstance(value, _Object) and all(map(_text, value.values()))


def _any_map(value: Any) -> bool:
    return isinstance(value, _Object)


def _integer(low: int, high: int) -> Check:
    def check(value: Any) -> bool:
        spelling = r"-?[1-9][0-9]{0,19}|0"
        return isinstance(value, _Number) and re.fullmatch(spelling, value) is not None and low <= int(value) <= high

    return check


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _struct(required: Mapping[str, Check], optional: Mapping[str, Check]) -> Check:
    fields = {**required, **{name: _optional(check) for name, check in optional.items()}}

    def check(value: Any) -> bool:
        return (
            isinstance(value, _Object)
            and value.repeated.isdisjoint(fields)
            and required.keys() <= value.keys()
            and all(fields[key](item) for key, item in value.items() if key in fields)
        )

    return check


_U64 = _integer(0, 2**64 - 1)
_DESCRIPTOR = _struct(
    {"mediaType": _text, "digest": _text, "size": _integer(-(2**63), 2**63 - 1)},
    {"urls": _texts, "annotations": _text_map},
)
_MANIFEST = _struct(
    {"schemaVersion": _integer(0, 255), "config": _DESCRIPTOR, "layers": _list_of(_DESCRIPTOR)},
    {"mediaType": _text, "subject": _DESCRIPTOR, "artifactType": _text, "annotations": _text_map},
)
_HEALTHCHECK = _struct(
    {},
    {"Test": _texts, "Interval": _U64, "Timeout": _U64, "StartPeriod": _U64, "Retries": _integer(0, 2**32 - 1)},
)
_RUN_CONFIG = _struct(
    {},
    {
        **dict.fromkeys(("Entrypoint", "Cmd", "Env", "Shell"), _texts),
        **dict.fromkeys(("WorkingDir", "User", "StopSignal"), _text),
        **dict.fromkeys(("ExposedPorts", "Volumes"), _any_map),
        "Labels": _text_map,
        "Healthcheck": _HEALTHCHECK,
    },
)
_CONFIG = _struct({}, {"config": _RUN_CONFIG, "os": _text, "os.version": _text})
_SIDECAR = _struct(dict.fromkeys(("reference", "os", "architecture"), _text), {"size": _U64, "digest": _text, "created": _text})


def _read(raw: bytes, check: Check) -> dict[str, Any]:
    value = _load(raw)
    if not check(value):
        raise Unreadable("a field is missing, repeated or of the wrong type")
    found: dict[str, Any] = value
    return found


def read_manifest(raw: bytes) -> tuple[str, str | None]:
    """Config digest and runtime marker of an OCI image manifest (image spec, `image.manifest.v1`); an index is unreadable."""
    manifest = _read(raw, _MANIFEST)
    return manifest["config"]["digest"], (manifest.get("annotations") or {}).get(RUNTIME_ANNOTATION)


def read_config(raw: bytes) -> tuple[OS | None, str | None]:
    """OS and isolation default of an OCI image config (image spec, `image.config.v1`)."""
    config = _read(raw, _CONFIG)
    labels = (config.get("config") or {}).get("Labels") or {}
    return _OS_BY_NAME.get(config.get("os") or ""), labels.get(ISOLATION_LABEL)


def read_sidecar(raw: bytes) -> OS | None:
    """OS of a natively built image, from the ``metadata.json`` beside its rootfs."""
    return _OS_BY_NAME.get(_read(raw, _SIDECAR)["os"])
