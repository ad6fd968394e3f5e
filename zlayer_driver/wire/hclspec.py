"""The schema that Nomad gets of a config block, derived from the block's model.

Every key is an attribute or a block of its own name; what is absent arrives as nil and takes the model's default, so no schema
default is needed. A map is ``list(map(string))``, the only type that both of HCL's spellings of a map convert to.
"""

from __future__ import annotations

from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from zlayer_driver.config import Block, Duration, Size
from zlayer_driver.errors import InternalError
from zlayer_driver.wire._gen import hclspec_pb2 as hcl

_SCALARS: dict[Any, str] = {
    Duration: "string",
    Size: "string",
    dict[str, str]: "list(map(string))",
    str: "string",
    int: "number",
    float: "number",
    bool: "bool",
}


def of(model: type[Block]) -> hcl.Spec:
    """The spec of ``model``; `InternalError` for a field whose type no config block can carry."""
    hints = get_type_hints(model, include_extras=True)
    fields = {name: _spec(name, hints[name], required=field.is_required()) for name, field in model.model_fields.items()}
    return hcl.Spec(object=hcl.Object(attributes=fields))


def _spec(name: str, annotation: Any, *, required: bool) -> hcl.Spec:
    annotation = _present(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Block):
        return hcl.Spec(block_value=hcl.Block(name=name, required=required, nested=of(annotation)))
    inner = get_args(annotation)
    if get_origin(annotation) is list and isinstance(inner[0], type) and issubclass(inner[0], Block):
        return hcl.Spec(block_list=hcl.BlockList(name=name, min_items=int(required), nested=of(inner[0])))
    return hcl.Spec(Attr=hcl.Attr(name=name, type=_type(name, annotation), required=required))


def _present(annotation: Any) -> Any:
    """What stands beside ``None``: an absent key is nil whatever its type."""
    if get_origin(annotation) in {Union, UnionType}:
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    return annotation


def _type(name: str, annotation: Any) -> str:
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if get_origin(annotation) is Annotated:
        return _type(name, get_args(annotation)[0])
    if get_origin(annotation) is list:
        return f"list({_type(name, get_args(annotation)[0])})"
    if get_origin(annotation) is Literal or (isinstance(annotation, type) and issubclass(annotation, Enum)):
        return "string"
    raise InternalError(f"config key {name!r} has type {annotation!r}, for which there is no HCL type")
