"""The schema that Nomad gets of a config block, derived from the block's model.

Every key is an attribute or a block of its own name; what is absent arrives as nil and takes the model's default, so no schema
default is needed. A map is ``list(map(string))``, the only type that both of HCL's spellings of a map convert to.
"""

from __future__ import annotations

from zlayer_driver.config import Block
from zlayer_driver.config_keys import Key, keys
from zlayer_driver.wire._gen import hclspec_pb2 as hcl

_TYPES = {
    "duration": "string",
    "size": "string",
    "map": "list(map(string))",
    "text": "string",
    "choice": "string",
    "number": "number",
    "true or false": "bool",
}


def of(model: type[Block]) -> hcl.Spec:
    """The spec of ``model``; `InternalError` for a field whose type no config block can carry."""
    return hcl.Spec(object=hcl.Object(attributes={key.name: _spec(key) for key in keys(model)}))


def _spec(key: Key) -> hcl.Spec:
    required = key.field.is_required()
    if key.block and key.many:
        return hcl.Spec(block_list=hcl.BlockList(name=key.name, min_items=int(required), nested=of(key.block)))
    if key.block:
        return hcl.Spec(block_value=hcl.Block(name=key.name, required=required, nested=of(key.block)))
    kind = _TYPES[key.kind]
    return hcl.Spec(Attr=hcl.Attr(name=key.name, type=f"list({kind})" if key.many else kind, required=required))
