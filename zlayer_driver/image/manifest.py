"""OCI and Docker image manifests, indexes and configs: JSON text of anybody's making into frozen values, or `Malformed`.

Formats: OCI image-spec 1.1 (manifest.md, image-index.md, config.md) and Docker's image manifest version 2, schema 2.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from zlayer_driver.image.values import Descriptor, ImageConfig, Index, Limits, Malformed, Manifest, check_digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})
COMPRESSION = {
    OCI_LAYER: "",
    f"{OCI_LAYER}+gzip": "gzip",
    f"{OCI_LAYER}+zstd": "zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar": "",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "gzip",
}

_ARCH = {"x86_64": "amd64", "aarch64": "arm64", "armv8l": "arm", "armv7l": "arm", "armv6l": "arm", "i686": "386", "loongarch64": "loong64"}

_VARIANT = re.compile(r"v(\d{1,3})", re.ASCII)
_LOWEST = {"amd64": 1, "arm64": 8, "arm": 6}  # variants that every 64-bit CPU, and every arm one that Linux distributions serve, has


def host_variant() -> int:
    """What this machine's CPU has for certain, as `choose` takes it."""
    return 7 if platform.machine() in {"armv7l", "armv8l"} else _LOWEST.get(host_arch(), 0)


def host_arch() -> str:
    """This machine's architecture by its OCI name."""
    machine = platform.machine()
    return _ARCH.get(machine, machine)


def parse_manifest(raw: bytes, media_type: str = "", *, limits: Limits | None = None) -> Manifest | Index:
    """``media_type`` is what the carrier called it; one inside the text wins, and the two must not contradict each other in kind."""
    doc = _load(raw, "manifest")
    said = _text(doc, "mediaType") or media_type
    has_layers, has_entries = "layers" in doc, "manifests" in doc
    if has_layers and has_entries:
        raise Malformed("manifest is both an image and an index")
    if doc.get("schemaVersion") != 2:
        raise Malformed("manifest has not schemaVersion 2; push the image again with a current tool")
    if said in INDEXES or (said not in MANIFESTS and has_entries):
        return _index(doc)
    if said in MANIFESTS or has_layers:
        return _image(doc, limits or Limits())
    raise Malformed(f"media type {said[:100]!r} is no image manifest")


def _index(doc: Mapping[str, Any]) -> Index:
    entries = tuple(_descriptor(item) for item in _list(doc, "manifests", dict))
    return Index(tuple(entry for entry in entries if entry.media_type in MANIFESTS | INDEXES))


def _image(doc: Mapping[str, Any], limits: Limits) -> Manifest:
    config = _descriptor(_mapping(doc, "config"))
    if config.media_type not in CONFIGS:
        raise Malformed(f"config has media type {config.media_type[:100]!r}: this is an artifact, not an image to run")
    layers = tuple(_descriptor(item) for item in _list(doc, "layers", dict))
    limits.check_layers(len(layers))
    for layer in layers:
        if layer.media_type not in COMPRESSION:
            raise Malformed(f"layer {layer.digest} has unknown media type {layer.media_type[:100]!r}")
        if layer.size > limits.layer_bytes:
            raise Malformed(f"layer {layer.digest} has {layer.size} bytes, and {limits.layer_bytes} are allowed by image_max_layer_mb")
    if config.size > limits.config_bytes:
        raise Malformed(f"config has {config.size} bytes, and {limits.config_bytes} are allowed")
    return Manifest(config, layers)


def _descriptor(doc: Mapping[str, Any]) -> Descriptor:
    size = doc.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise Malformed(f"descriptor has size {str(size)[:40]!r}")
    where = _mapping(doc, "platform")
    return Descriptor(
        media_type=_text(doc, "mediaType"),
        digest=check_digest(doc.get("digest")),
        size=size,
        os=_text(where, "os"),
        arch=_text(where, "architecture"),
        variant=_text(where, "variant"),
        annotations=_text_map(doc, "annotations"),
    )


def choose(index: Index, os: str, arch: str, *, highest: int | None = None) -> Descriptor:
    """The index entry for a platform. Where no entry has the OS, the first real one: its config then tells what the image is for.

    ``highest`` is the variant that the CPU has at least (7 of ``arm/v7``), by default the lowest of its architecture.
    """
    highest = _LOWEST.get(arch, 0) if highest is None else highest
    images = [entry for entry in index.entries if entry.os not in {"", "unknown"}] or list(index.entries)
    if not images:
        raise Malformed("index has no image")
    fitting = [entry for entry in images if entry.os in {os, ""}]
    if not fitting:
        return images[0]
    exact = [entry for entry in fitting if entry.arch in {arch, ""} and _level(entry, arch) <= highest]
    if not exact:
        offered = ", ".join(sorted({"/".join(filter(None, (entry.os, entry.arch, entry.variant))) for entry in fitting}))
        raise Malformed(f"no image for {os}/{arch} in its index, only for {offered[:300]}")
    return max(exact, key=lambda entry: _level(entry, arch))  # the first of equals


def _level(entry: Descriptor, arch: str) -> int:
    """An entry's variant as a number: the higher, the more it asks of a CPU. Without one it asks for what its architecture starts with."""
    found = _VARIANT.match(entry.variant)
    return int(found[1]) if found else _LOWEST.get(arch, 0)


def parse_config(raw: bytes) -> ImageConfig:
    doc = _load(raw, "config")
    run = _mapping(doc, "config")
    return ImageConfig(
        os=_text(doc, "os"),
        arch=_text(doc, "architecture"),
        diff_ids=tuple(check_digest(item) for item in _list(_mapping(doc, "rootfs"), "diff_ids", str)),
        entrypoint=_texts(run, "Entrypoint"),
        cmd=_texts(run, "Cmd"),
        env=_texts(run, "Env"),
        user=_text(run, "User"),
        work_dir=_text(run, "WorkingDir"),
        stop_signal=_text(run, "StopSignal"),
        labels=_text_map(run, "Labels"),
    )


def _refuse_constant(text: str) -> NoReturn:
    raise Malformed(f"{text} is no JSON number")


def _load(raw: bytes, what: str) -> Mapping[str, Any]:
    try:
        doc = json.loads(raw, parse_constant=_refuse_constant)
    except Malformed:
        raise
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what} is no JSON text: {str(error)[:100]}") from error
    if not isinstance(doc, dict):
        raise Malformed(f"{what} is no JSON object")
    return doc


def _text(doc: Mapping[str, Any], key: str) -> str:
    value = doc.get(key)
    if value is None:
        return ""
    if not _is_text(value):
        raise Malformed(f"{key} is no text")
    return str(value)


def _is_text(value: object) -> bool:
    """Whether the kernel can take it: no NUL byte, no half of a surrogate pair."""
    if not isinstance(value, str) or "\0" in value:
        return False
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)


def _mapping(doc: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = doc.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Malformed(f"{key} is no object")
    return value


def _list(doc: Mapping[str, Any], key: str, kind: type) -> Sequence[Any]:
    value = doc.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise Malformed(f"{key} is no list of {kind.__name__}")
    return value


def _texts(doc: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = tuple(_list(doc, key, str))
    if not all(_is_text(value) for value in values):
        raise Malformed(f"{key} is no list of texts")
    return values


def _text_map(doc: Mapping[str, Any], key: str) -> Mapping[str, str]:
    values = _mapping(doc, key)
    if not all(_is_text(part) for item in values.items() for part in item):
        raise Malformed(f"{key} is no map of texts")
    return values
