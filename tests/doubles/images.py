"""Images made by tests: archives of any members, and the blobs, manifests and layouts around them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

OCI = "application/vnd.oci.image"
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def member(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A tar member; ``kind`` is a tarfile type, the rest are `tarfile.TarInfo` attributes."""
    info = tarfile.TarInfo(name)
    info.type = fields.pop("kind", tarfile.REGTYPE)
    info.mode = fields.pop("mode", 0o755 if info.type == tarfile.DIRTYPE else 0o644)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def directory(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, kind=tarfile.DIRTYPE, **fields)


def symlink(name: str, target: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, kind=tarfile.SYMTYPE, linkname=target, **fields)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, kind=tarfile.LNKTYPE, linkname=target)


def archive(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if content else None)
    return out.getvalue()


def compressed(content: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(content, 1, mtime=0)
    return zstandard.ZstdCompressor().compress(content) if how == "zstd" else content


@dataclass
class Built:
    """An image in memory: every blob by digest, and its manifest."""

    manifest: bytes
    media_type: str = f"{OCI}.manifest.v1+json"
    blobs: dict[str, bytes] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return digest(self.manifest)

    def layout(self, root: Path, tag: str = "latest") -> Path:
        """Writes an OCI image layout directory."""
        (root / "blobs/sha256").mkdir(parents=True)
        for name, content in {**self.blobs, self.digest: self.manifest}.items():
            (root / "blobs/sha256" / name.removeprefix("sha256:")).write_bytes(content)
        (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        entry = {**descriptor(self.manifest, self.media_type), "annotations": {"org.opencontainers.image.ref.name": tag}}
        (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        return root


def descriptor(content: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(content), "size": len(content)}


def image(
    layers: Iterable[bytes],
    *,
    how: str = "gzip",
    config: Mapping[str, Any] | None = None,
    os: str = "linux",
    arch: str = ARCH,
    annotations: Mapping[str, str] | None = None,
) -> Built:
    """An OCI image of uncompressed layer archives, bottom first; ``config`` is the run part of its config."""
    archives = list(layers)
    document = {
        "os": os,
        "architecture": arch,
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar in archives]},
    }
    config_raw = json.dumps(document).encode()
    packed = [compressed(tar, how) for tar in archives]
    suffix = f"+{how}" if how else ""
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": descriptor(config_raw, f"{OCI}.config.v1+json"),
        "layers": [descriptor(blob, f"{OCI}.layer.v1.tar{suffix}") for blob in packed],
        "annotations": dict(annotations or {}),
    }
    return Built(json.dumps(manifest).encode(), blobs={digest(blob): blob for blob in [config_raw, *packed]})


def index(*entries: tuple[Built, str, str]) -> Built:
    """An index over (image, os, arch)."""
    document = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.index.v1+json",
        "manifests": [
            {**descriptor(built.manifest, built.media_type), "platform": {"os": os, "architecture": arch}} for built, os, arch in entries
        ],
    }
    blobs = {name: content for built, _, _ in entries for name, content in {**built.blobs, built.digest: built.manifest}.items()}
    return Built(json.dumps(document).encode(), f"{OCI}.index.v1+json", blobs)
