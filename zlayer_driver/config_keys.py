"""The keys of a config block, for all who speak of them: the schema that Nomad gets, readers of HCL, the reference in the docs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from zlayer_driver.config import Block, Duration, Size
from zlayer_driver.errors import InternalError

_SCALARS: dict[Any, str] = {
    Duration: "duration",
    Size: "size",
    dict[str, str]: "map",
    str: "text",
    int: "number",
    float: "number",
    bool: "true or false",
}


@dataclass(frozen=True, slots=True)
class Key:
    """A key whose value is of a ``kind``, or if ``many`` a list of such: a scalar's name, ``choice`` among ``choices``, or a ``block``."""

    name: str
    field: FieldInfo
    kind: str
    many: bool = False
    choices: Sequence[str] = ()
    block: type[Block] | None = None


def keys(model: type[Block]) -> Iterator[Key]:
    """Those of ``model``, in its order; `InternalError` for one whose type no config block can carry."""
    hints = get_type_hints(model, include_extras=True)
    for name, field in model.model_fields.items():
        annotation = _bare(hints[name])
        many = get_origin(annotation) is list
        yield _key(name, field, _bare(get_args(annotation)[0]) if many else annotation, many=many)


def _key(name: str, field: FieldInfo, annotation: Any, *, many: bool) -> Key:
    if annotation in _SCALARS:
        return Key(name, field, _SCALARS[annotation], many)
    if get_origin(annotation) is Literal:
        return Key(name, field, "choice", many, choices=[choice for choice in get_args(annotation) if choice])
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return Key(name, field, "choice", many, choices=[choice.value for choice in annotation])
    if isinstance(annotation, type) and issubclass(annotation, Block):
        return Key(name, field, "block", many, block=annotation)
    raise InternalError(f"config key {name!r} has type {annotation!r}, for which there is no HCL type")


def _bare(annotation: Any) -> Any:
    """Without ``None``, since an absent key is nil whatever its type, and without validators, unless these make it a type of its own."""
    if get_origin(annotation) in {Union, UnionType}:
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is Annotated and annotation not in _SCALARS:
        annotation = get_args(annotation)[0]
    return annotation
