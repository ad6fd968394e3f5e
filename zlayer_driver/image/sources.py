"""Images that are on this machine already, named as skopeo names them.

::

    oci:DIR[:TAG]                 an OCI image layout
    oci-archive:FILE[:TAG]        the same in a tar archive
    docker-archive:FILE[:NAME]    what ``docker save`` and ``podman save`` write
    tarball:FILE                  a bare root file system
    docker-daemon:NAME            an image of the Docker engine on this machine
    podman:NAME                   an image of the Podman engine on this machine: our own word, skopeo has none for it

Formats: OCI image-spec 1.1 (image-layout.md), Docker image specification 1.2 («combined image JSON + filesystem changeset format»).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from zlayer_driver import fastpath
from zlayer_driver.errors import ConfigError, InvalidReference
from zlayer_driver.image.engines import ENGINES, saved
from zlayer_driver.image.files import Directory, Extent, Files, OneFile, TarFile, inside, open_regular
from zlayer_driver.image.manifest import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, host_arch, parse_config, parse_manifest
from zlayer_driver.image.stream import digest_of, inflated
from zlayer_driver.image.values import Descriptor, Index, Limits, Malformed, Source, translated
from zlayer_driver.waiting import in_thread

_REF_NAME = "org.opencontainers.image.ref.name"
_FULL_NAME = "io.containerd.image.name"
_ENGINE_ID = re.compile(r"(sha256:)?[0-9a-f]{12,64}", re.ASCII)


class Local(Source, Protocol):
    """A source that may know its image's name; ``name`` is the reference as text, or empty."""

    name: str


def is_local(text: str) -> bool:
    """Whether this names a source here, not an image of a registry. Who means the image ``oci`` of Docker Hub says ``docker.io/library/oci``."""
    return text.partition(":")[0] in {*_KINDS, *ENGINES}


def is_file(text: str) -> bool:
    """Whether this names a file or directory."""
    return text.partition(":")[0] in _KINDS


@asynccontextmanager
async def open_source(text: str, limits: Limits, root: Path | None = None) -> AsyncIterator[Local]:
    """Opens ``KIND:PATH[:NAME]``; `ConfigError` for a kind that does not exist.

    With a ``root``, only what lies in that directory is opened.
    """
    kind, _, rest = text.partition(":")
    if not is_local(text) or not rest:
        raise ConfigError(f"{text!r} names no image source", hint=f"use one of {', '.join(f'{known}:PATH' for known in _KINDS)}")
    with translated(text), ExitStack() as stack:
        opening = _of_engine(await saved(kind, rest, limits), rest, limits) if kind in ENGINES else _of_files(kind, rest, limits, root)
        yield await in_thread(stack.enter_context, opening)


@contextmanager
def _of_engine(fd: int, asked: str, limits: Limits) -> Iterator[Local]:
    with closing(TarFile(fd, limits)) as archive:
        yield EngineImage(archive, asked, limits)


@contextmanager
def _of_files(kind: str, rest: str, limits: Limits, root: Path | None) -> Iterator[Local]:
    path, name = _split(rest)
    opened, make = _KINDS[kind]
    with closing(opened(path, root, limits)) as files:
        yield make(files, path, name, limits)


def _layout(path: Path, root: Path | None, _limits: Limits) -> Files:
    return Directory(inside(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), root))


def _archive(path: Path, root: Path | None, limits: Limits) -> Files:
    return TarFile(inside(open_regular(path), root), limits)


def _one_file(path: Path, root: Path | None, _limits: Limits) -> Files:
    return OneFile(inside(open_regular(path), root))


def _split(text: str) -> tuple[Path, str]:
    """Path and name. Both may have colons, so the longest prefix that exists is the path."""
    ends = [len(text), *(at for at in range(len(text) - 1, 0, -1) if text[at] == ":")]
    end = next((end for end in ends if Path(text[:end]).exists()), ends[-1])
    return Path(text[:end]), text[end + 1 :]


class _Blobs:
    """Blobs by digest, as `Source` wants them; a subclass says which file holds which."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def extent(self, blob: Descriptor) -> Extent:
        return self._files.extent(f"blobs/{blob.digest.replace(':', '/')}")

    async def content(self, blob: Descriptor) -> bytes:
        return await asyncio.to_thread(self.extent(blob).read, blob.size)

    def pieces(self, blob: Descriptor) -> AsyncGenerator[bytes, None]:
        return self.extent(blob).stream()


class OciLayout(_Blobs):
    def __init__(self, files: Files, path: Path, tag: str, limits: Limits) -> None:
        super().__init__(files)
        self._raw = files.extent("index.json").read(limits.manifest_bytes)
        index = parse_manifest(self._raw, OCI_INDEX, limits=limits)
        if not isinstance(index, Index):
            raise Malformed("index.json of the image layout is no index")
        entries = [
            entry for entry in index.entries if not tag or tag in {entry.annotations.get(_REF_NAME), entry.annotations.get(_FULL_NAME)}
        ]
        if not entries:
            known = ", ".join(sorted({entry.annotations.get(_REF_NAME, "") for entry in index.entries}))
            raise Malformed(f"the image layout has no image {tag!r}, only: {known[:300] or 'none'}")
        self._chosen = entries[0] if len(entries) == 1 else None
        self.name = _name(path, tag, entries[0])

    async def root(self, limits: Limits) -> tuple[bytes, str]:
        if self._chosen is None:
            return self._raw, OCI_INDEX
        raw = await asyncio.to_thread(self.extent(self._chosen).read, limits.manifest_bytes)
        if digest_of(raw) != self._chosen.digest:
            raise Malformed(f"manifest {self._chosen.digest} has content of another digest")
        return raw, self._chosen.media_type


def _name(path: Path, tag: str, entry: Descriptor) -> str:
    """A full name from the annotations, else one under ``localhost/`` from file and tag, as podman makes it; empty if that is none."""
    said = entry.annotations.get(_FULL_NAME, "") or entry.annotations.get(_REF_NAME, "")
    if "/" in said:
        return said
    made = f"localhost/{path.name.split('.')[0].lower()}:{tag or said or 'latest'}"
    try:
        fastpath.parse(made)
    except InvalidReference:
        return ""
    return made


class _Made(_Blobs):
    """An image whose manifest is made here, of a config and layer files; layers are found by the digests that the making gave them."""

    def __init__(self, files: Files, config: bytes, layers: Sequence[Extent], diff_ids: Sequence[str], limits: Limits) -> None:
        super().__init__(files)
        limits.check_layers(len(layers))
        if len(layers) != len(diff_ids):
            raise Malformed(f"config has {len(diff_ids)} diff_ids for {len(layers)} layers")
        self._config = config
        self._extents: dict[str, Extent] = {}
        self._layers = [self._add(extent, diff_id) for extent, diff_id in zip(layers, diff_ids, strict=True)]

    def _add(self, extent: Extent, diff_id: str) -> dict[str, Any]:
        compression = extent.compression()
        digest = _digest(extent.pieces()) if compression else diff_id
        self._extents[digest] = extent
        return {"mediaType": f"{OCI_LAYER}+{compression}" if compression else OCI_LAYER, "digest": digest, "size": extent.size}

    def extent(self, blob: Descriptor) -> Extent:
        return self._extents[blob.digest]

    async def root(self, _limits: Limits) -> tuple[bytes, str]:
        config = {"mediaType": OCI_CONFIG, "digest": digest_of(self._config), "size": len(self._config)}
        document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": self._layers}
        return json.dumps(document).encode(), OCI_MANIFEST

    async def content(self, _blob: Descriptor) -> bytes:
        return self._config


class DockerArchive(_Made):
    def __init__(self, files: Files, _path: Path, name: str, limits: Limits) -> None:
        images = _images(files.extent("manifest.json").read(limits.manifest_bytes))
        tags = [tag for image in images for tag in image["RepoTags"]]
        fitting = [image for image in images if name in image["RepoTags"]] if name else images
        if len(fitting) != 1:
            raise Malformed(f"the archive has {len(fitting)} images {name!r} of: {', '.join(tags)[:300] or 'no name'}")
        config = files.extent(fitting[0]["Config"]).read(limits.config_bytes)
        super().__init__(files, config, [files.extent(layer) for layer in fitting[0]["Layers"]], parse_config(config).diff_ids, limits)
        self.name = name or next(iter(fitting[0]["RepoTags"]), "")


class EngineImage(DockerArchive):
    """The one image of an archive that an engine made, under the name that it was asked for by. One asked for by its ID has none."""

    def __init__(self, files: Files, asked: str, limits: Limits) -> None:
        super().__init__(files, Path(), "", limits)
        self.name = "" if _ENGINE_ID.fullmatch(asked) else asked


def _images(raw: bytes) -> list[Mapping[str, Any]]:
    """The entries of an archive's ``manifest.json``, each with texts in ``Config``, ``RepoTags`` and ``Layers``."""
    try:
        images: list[Mapping[str, Any]] = [{**image, "RepoTags": image.get("RepoTags") or []} for image in json.loads(raw)]
        texts = [text for image in images for text in (image["Config"], *image["Layers"], *image["RepoTags"])]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Malformed("manifest.json of the archive is damaged") from error
    if not all(isinstance(text, str) for text in texts):
        raise Malformed("manifest.json of the archive is damaged")
    return images


class Tarball(_Made):
    """A root file system as the one layer of an image without a command. The file is read twice: its diff_id comes first."""

    def __init__(self, files: Files, path: Path, name: str, limits: Limits) -> None:
        whole = files.extent("")
        diff_id = _digest(inflated(whole.pieces(), whole.compression(), limits))
        config = {"os": "linux", "architecture": host_arch(), "config": {}, "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
        super().__init__(files, json.dumps(config).encode(), [whole], [diff_id], limits)
        self.name = name or _name(path, "", Descriptor("", "", 0))


def _digest(pieces: Iterator[bytes]) -> str:
    seen = hashlib.sha256()
    for piece in pieces:
        seen.update(piece)
    return f"sha256:{seen.hexdigest()}"


_KINDS: dict[str, tuple[Callable[[Path, Path | None, Limits], Files], Callable[[Files, Path, str, Limits], Local]]] = {
    "oci": (_layout, OciLayout),
    "oci-archive": (_archive, OciLayout),
    "docker-archive": (_archive, DockerArchive),
    "tarball": (_one_file, Tarball),
}
