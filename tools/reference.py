"""Writes the config reference, ``docs/config.md``, from the models that validate the blocks: ``python -m tools.reference``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from zlayer_driver.config import Block, Duration, PluginConfig, Size, TaskConfig

TARGET = Path(__file__).parents[1] / "docs" / "config.md"
_HEAD = """\
# Config reference

Made by `python -m tools.reference` from the models that validate both blocks. An unknown key, and a value that does not fit, is an error that
names every fault of the block at once. A *duration* is a number of seconds or text such as `"90s"` or `"1h30m"`; a *size* is a number of bytes or text
such as `"64m"`, in binary units.
"""
_WORDS = {Duration: "duration", Size: "size", str: "text", int: "number", float: "number", bool: "true or false", dict[str, str]: "map"}


def reference() -> str:
    """The page, as Markdown."""
    parts = [_HEAD]
    for title, model in (
        ('Plugin block: `plugin "zlayer-driver" { config { … } }`', PluginConfig),
        ("Task block: `config { … }`", TaskConfig),
    ):
        parts += [f"\n## {title}\n", *_tables(model, "")]
    return "".join(parts)


def _tables(model: type[Block], name: str) -> Iterator[str]:
    hints = get_type_hints(model, include_extras=True)
    if name:
        yield f"\n### `{name}`\n\n{textwrap.dedent(model.__doc__ or '').strip()}\n" if model.__doc__ else f"\n### `{name}`\n"
    yield "\n| key | type | default | meaning |\n|---|---|---|---|\n"
    for key, field in model.model_fields.items():
        yield f"| `{key}` | {_type(hints[key])} | {_default(field)} | {_cell(field.description or '')} |\n"
    for key in model.model_fields:
        if block := _block(hints[key]):
            yield from _tables(block, f"{name}.{key}" if name else key)


def _block(annotation: Any) -> type[Block] | None:
    parts = (annotation, *get_args(annotation))
    return next((part for part in parts if isinstance(part, type) and issubclass(part, Block)), None)


def _type(annotation: Any) -> str:
    annotation = _bare(annotation)
    origin, parts = get_origin(annotation), get_args(annotation)
    if _block(annotation):
        return "blocks" if origin is list else "block"
    if origin is list:
        return f"list of {_type(parts[0])}"
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in parts if choice)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{choice.value}`" for choice in annotation)
    return _WORDS[annotation]


def _bare(annotation: Any) -> Any:
    """Without ``None`` and without validators, unless these make it a type of its own."""
    if annotation in _WORDS:
        return annotation
    if get_origin(annotation) in {Union, UnionType}:
        return _bare(next(part for part in get_args(annotation) if part is not NoneType))
    return _bare(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None or value == "" or isinstance(value, Block) or value in ([], {}):
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
