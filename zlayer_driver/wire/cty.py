"""Config blocks the way a Nomad client makes them: checked and converted by the plugin's schema, then packed as go-cty does.

In the packed form every key of the schema is there (an absent one as nil), keys are sorted, and a number that no float64 holds exactly
is text: 0.1 arrives as ``"0.1"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import msgpack

from zlayer_driver.errors import ConfigError
from zlayer_driver.wire._gen import hclspec_pb2 as hcl

_INT64 = range(-(1 << 63), 1 << 63)


def pack(spec: hcl.Spec, config: Mapping[str, Any]) -> bytes:
    """The block in bytes; `ConfigError` for a key that the schema does not have or a value that does not convert."""
    packed: bytes = msgpack.packb(_block(spec.object, config, "config"))
    return packed


def _block(spec: hcl.Object, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    if unknown := sorted(set(config) - set(spec.attributes)):
        raise ConfigError(f"{where} has no key {unknown[0]!r}", hint=f"the keys are {', '.join(sorted(spec.attributes))}")
    return {name: _value(spec.attributes[name], config.get(name), f"{where}.{name}") for name in sorted(spec.attributes)}


def _value(spec: hcl.Spec, value: Any, where: str) -> Any:
    kind = spec.WhichOneof("block")
    if kind == "block_list":
        blocks = [value] if isinstance(value, Mapping) else value or []
        return [_block(spec.block_list.nested.object, block, where) for block in blocks]
    if kind not in {"Attr", "block_value"}:
        raise ConfigError(f"{where} has a schema of kind {kind}, which this host does not know")
    required = spec.Attr.required or spec.block_value.required
    if value is None:
        if required:
            raise ConfigError(f"{where} is required")
        return None
    if kind == "block_value":
        return _block(spec.block_value.nested.object, _only(value, where), where)
    return _convert(spec.Attr.type, value, where)


def _only(value: Any, where: str) -> Mapping[str, Any]:
    """A block may be spelled as a map, or as the list of one map that HCL makes of it."""
    blocks = value if isinstance(value, list) else [value]
    if len(blocks) != 1 or not isinstance(blocks[0], Mapping):
        raise ConfigError(f"{where} must be one block")
    return blocks[0]


def _convert(kind: str, value: Any, where: str) -> Any:
    outer, _, inner = kind.partition("(")
    match outer, value:
        case "string", str() | bool() | int() | float():
            return str(value).lower() if isinstance(value, bool) else str(value)
        case "bool", bool() | "true" | "false":
            return value in {True, "true"}
        case "number", str() | int() | float() if not isinstance(value, bool):
            return _number(value, where)
        case "list", Mapping():
            return [_convert(inner[:-1], value, where)]
        case "list", list() | tuple():
            return [_convert(inner[:-1], item, f"{where}[{index}]") for index, item in enumerate(value)]
        case "map", Mapping():
            return {str(key): _convert(inner[:-1], item, f"{where}.{key}") for key, item in sorted(value.items())}
    raise ConfigError(f"{where} must be a {kind}, not {value!r}")


def _number(value: str | float, where: str) -> int | float | str:
    try:
        exact = Decimal(str(value))
    except InvalidOperation:
        exact = Decimal("NaN")
    if not exact.is_finite():
        raise ConfigError(f"{where} must be a number, not {value!r}")
    if exact == exact.to_integral_value():
        return int(exact) if int(exact) in _INT64 else str(int(exact))
    return float(exact) if Decimal(float(exact)) == exact else str(exact)
