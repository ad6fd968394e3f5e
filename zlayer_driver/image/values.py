"""Frozen values of images, and the limits that hostile ones run into."""

from __future__ import annotations

import errno
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from zlayer_driver.errors import PullFailed

MIB = 1 << 20
GIB = 1 << 30
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


class Malformed(ValueError):
    """Content that no image may have; see `translated`."""


class LowerNeeded(Malformed):
    """A layer that can be unpacked only with the layers below it in view, if at all."""


@contextmanager
def translated(image: str) -> Iterator[None]:
    """What goes wrong with content or disk, as `PullFailed`."""
    try:
        yield
    except Malformed as error:
        raise PullFailed(image, str(error)) from error
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        hint = "make room in the state directory, and in TMPDIR for archives" if full else ""
        raise PullFailed(image, f"{error.strerror or error}", hint=hint, recoverable=full) from error


def check_digest(text: object) -> str:
    """``text``, if it is a sha256 digest in its one canonical spelling; it may then name a file."""
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise Malformed(f"{str(text)[:100]!r} is no sha256 digest")
    return text


@dataclass(frozen=True, slots=True)
class Limits:
    """What one image may cost at most. The defaults are far above honest images and far below what harms a node.

    ``ratio`` is unpacked over compressed bytes of a layer, asked only beyond ``ratio_free_bytes``; that is also how much of the layers below
    a layer may have copied by hard links.
    """

    manifest_bytes: int = 4 * MIB
    config_bytes: int = 8 * MIB
    layers: int = 256
    layer_bytes: int = 64 * GIB
    entries: int = 2_000_000
    depth: int = 128
    ratio: int = 500
    ratio_free_bytes: int = 256 * MIB

    def check_layers(self, count: int) -> None:
        """`Malformed` if they are too many for one image."""
        if count > self.layers:
            raise Malformed(f"{count} layers, and {self.layers} are allowed by image_max_layers")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to content by digest; ``size`` in bytes. ``os`` and ``arch`` are those of an index entry, empty elsewhere."""

    media_type: str
    digest: str
    size: int
    os: str = ""
    arch: str = ""
    variant: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Layers are bottom first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Index:
    entries: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """The parts of the OCI image config that running a container needs. ``diff_ids`` are bottom first; empty text is «not said»."""

    os: str
    arch: str
    diff_ids: tuple[str, ...]
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    work_dir: str = ""
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is ready to run: ``layers`` are overlayfs lower directories, bottom first; ``size_bytes`` is that of its blobs."""

    reference: str
    digest: str
    config: ImageConfig
    layers: tuple[Path, ...]
    size_bytes: int


class Source(Protocol):
    """Where an image comes from. Its content is trusted by digest only, and nothing that it says of sizes is believed."""

    async def root(self, limits: Limits, /) -> tuple[bytes, str]:
        """The manifest or index of the image, and the media type it is said to have (or empty)."""
        ...

    async def content(self, blob: Descriptor, /) -> bytes:
        """A manifest or config, whole, of at most ``blob.size`` bytes."""
        ...

    def pieces(self, blob: Descriptor, /) -> AsyncGenerator[bytes, None]:
        """A layer's bytes."""
        ...
