"""Blob caches as the recordings describe them: real SQLite files with one manifest and one config an image."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from zlayer_driver import fastpath
from zlayer_driver.model import ISOLATION_LABEL, RUNTIME_ANNOTATION, ImageFacts

_SCHEMA = """CREATE TABLE blobs (digest TEXT PRIMARY KEY NOT NULL, data BLOB NOT NULL, size_bytes INTEGER NOT NULL,
created_at INTEGER NOT NULL, last_accessed INTEGER NOT NULL)"""


def manifest_key(image: str) -> str:
    manifest, _, _ = fastpath.cache_keys(image)
    return str(manifest)


def write_cache(path: Path, images: Mapping[str, ImageFacts], *, config: bytes | None = None) -> None:
    """A cache with ``images`` by their manifest keys. ``config`` takes the place of every image's config."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(_SCHEMA)
        for key, facts in images.items():
            blob = config or _config(facts)
            digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
            for name, data in ((digest, blob), (key, _manifest(facts, digest, len(blob)))):
                database.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, 0, 0)", (name, data, len(data)))


def _config(facts: ImageFacts) -> bytes:
    labels = {} if facts.isolation is None else {ISOLATION_LABEL: facts.isolation}
    return json.dumps({**({"os": facts.os} if facts.os else {}), "config": {"Labels": labels}}).encode()


def _manifest(facts: ImageFacts, digest: str, size_bytes: int) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": size_bytes},
        "layers": [],
        **({} if facts.marker is None else {"annotations": {RUNTIME_ANNOTATION: facts.marker}}),
    }
    return json.dumps(document).encode()
