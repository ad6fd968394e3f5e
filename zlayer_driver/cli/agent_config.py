"""The driver's block in a Nomad agent's own configuration: people and the agent read the same file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zlayer_driver.config import Block, PluginConfig
from zlayer_driver.config_keys import keys
from zlayer_driver.errors import ConfigError

PLUGIN = "zlayer-driver"
META = f"{__name__}.agent"  # where a click context keeps what was read
_KEY = re.compile(r'(^[ \t]*|[{,][ \t]*)("[^"\\\n]+"|[A-Za-z_][\w-]*(?:\.[\w-]+)+)(?=[ \t]*=[^=>])', re.MULTILINE)
_SPELLED = "zlayer_key_"
_SUFFIXES = (".hcl", ".json")


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """``plugin_dir`` is empty where no file names one; ``config`` is the block as Nomad would hand it over."""

    plugin_dir: str
    config: Mapping[str, Any]


def read(path: Path) -> AgentConfig:
    """What a file, or all files of a directory as Nomad reads them, say of this plugin; `ConfigError` where they cannot be read or do not."""
    plugin_dir, found, others = "", None, set[str]()
    for file in _files(path):
        agent = _parsed(file)
        plugin_dir = str(agent.get("plugin_dir") or plugin_dir)
        others |= set(_labels(agent.get("plugin")))
        for block in _labelled(agent.get("plugin"), PLUGIN):
            found = _config(file, _one(block.get("config")) or {})
    if found is None:
        only = f", only {', '.join(sorted(others))}" if others else ""
        raise ConfigError(f'{path} has no block plugin "{PLUGIN}"{only}', hint="`zlayer-driver install` prints one")
    return AgentConfig(plugin_dir, found)


def _config(file: Path, block: object) -> dict[str, Any]:
    if not isinstance(block, Mapping):
        raise ConfigError(f'{file}: config of plugin "{PLUGIN}" is no block', hint="`zlayer-driver install` prints one")
    return fold(PluginConfig, block)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)


def _parsed(file: Path) -> Mapping[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text) if file.suffix == ".json" else parse_hcl(text)
    except (OSError, ValueError) as error:
        hint = "" if isinstance(error, OSError) else "mend it, or name a file that has the plugin block alone"
        raise ConfigError(f"{file} cannot be read: {error}", hint=hint) from error
    if not isinstance(found, Mapping):
        raise ConfigError(f"{file} is no agent configuration: an object is needed")
    return found


def parse_hcl(text: str) -> dict[str, Any]:
    """HCL as plain values; a block is a list of maps. `ValueError` names the line of what does not fit.

    Agents read HCL 1, whose keys may be quoted and have dots in any block. Where there are such, each is spelled as a plain name meanwhile.
    """
    try:
        return _parsed_hcl2(text)
    except ValueError:
        spelled = _KEY.sub(_spelled, text)
        if spelled == text:
            raise
        return dict(_read_back(_parsed_hcl2(spelled)))


def _spelled(found: re.Match[str]) -> str:
    name = found[2].strip('"').encode().hex()
    return f"{found[1]}{_SPELLED}{name}"


def _read_back(value: Any) -> Any:
    if isinstance(value, list):
        return [_read_back(item) for item in value]
    if isinstance(value, dict):
        return {_name(key): _read_back(item) for key, item in value.items()}
    return value


def _name(key: str) -> str:
    return bytes.fromhex(key.removeprefix(_SPELLED)).decode() if key.startswith(_SPELLED) else key


def _parsed_hcl2(text: str) -> dict[str, Any]:
    import hcl2  # noqa: PLC0415  # with lark it costs as much as all else a command needs, and few commands read HCL
    from hcl2.utils import SerializationOptions  # noqa: PLC0415  # as above
    from lark.exceptions import UnexpectedInput  # noqa: PLC0415  # as above

    options = SerializationOptions(with_comments=False, explicit_blocks=False, strip_string_quotes=True, preserve_heredocs=False)
    try:
        return dict(hcl2.loads(text, serialization_options=options))
    except UnexpectedInput as error:
        raise ValueError(f"line {error.line}, column {error.column}: this is no HCL") from error


def fold(model: type[Block], values: Mapping[str, Any]) -> dict[str, Any]:
    """A block's values with each inner block that comes at most once as a map, which HCL gives as a list of one."""
    inner = {key.name: key.block for key in keys(model) if key.block and not key.many}
    return {
        key: fold(inner[key], found) if key in inner and isinstance(found := _one(value), Mapping) else value
        for key, value in values.items()
    }


def _labels(blocks: object) -> Iterator[str]:
    for block in blocks if isinstance(blocks, list) else [blocks]:
        if isinstance(block, Mapping):
            yield from block


def _labelled(blocks: object, label: str) -> Iterator[Mapping[str, Any]]:
    """The bodies of blocks with a label, in the shapes that HCL and JSON give them."""
    for block in blocks if isinstance(blocks, list) else [blocks]:
        if isinstance(block, Mapping) and isinstance(body := _one(block.get(label)), Mapping):
            yield body


def _one(value: object) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value
