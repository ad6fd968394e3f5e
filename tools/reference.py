"""Writes the config reference, ``docs/config.md``, from the models that validate the blocks: ``python -m tools.reference``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from zlayer_driver.config import Block, PluginConfig, TaskConfig
from zlayer_driver.config_keys import Key, keys

TARGET = Path(__file__).parents[1] / "docs" / "config.md"
_HEAD = """\
# Config reference

Made by `python -m tools.reference` from the models that validate both blocks. An unknown key, and a value that does not fit, is an error that
names every fault of the block at once. A *duration* is a number of seconds or text such as `"90s"` or `"1h30m"`; a *size* is a number of bytes or text
such as `"64m"`, in binary units.
"""


def reference() -> str:
    """The page, as Markdown."""
    parts = [_HEAD]
    for title, model in (
        ('Plugin block: `plugin "zlayer-driver" { config { … } }`', PluginConfig),
        ("Task block: `config { … }`", TaskConfig),
    ):
        parts += [f"\n## {title}\n", *_tables(model, "", set())]
    return "".join(parts)


def _tables(model: type[Block], name: str, shown: set[type[Block]]) -> Iterator[str]:
    """A table of the model, then those of the blocks in it, each once."""
    shown.add(model)
    if name:
        yield f"\n### `{name}`\n\n{textwrap.dedent(model.__doc__ or '').strip()}\n" if model.__doc__ else f"\n### `{name}`\n"
    yield "\n| key | type | default | meaning |\n|---|---|---|---|\n"
    for key in keys(model):
        yield f"| `{key.name}` | {_type(key)} | {_default(key.field)} | {_cell(key.field.description or '')} |\n"
    for key in keys(model):
        if key.block and key.block not in shown:
            yield from _tables(key.block, f"{name}.{key.name}" if name else key.name, shown)


def _type(key: Key) -> str:
    if key.block:
        return "blocks" if key.many else "block"
    kind = ", ".join(f"`{choice}`" for choice in key.choices) or key.kind
    return f"list of {kind}" if key.many else kind


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
