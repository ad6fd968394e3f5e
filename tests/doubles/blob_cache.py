"""Writes ZLayer blob caches for tests: the SQLite schema, and the documents of small images."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from zlayer_driver.fastpath import canonical

SCHEMA = """
CREATE TABLE IF NOT EXISTS blobs (
    digest TEXT PRIMARY KEY NOT NULL, data BLOB NOT NULL, size_bytes INTEGER NOT NULL, created_at INTEGER NOT NULL, last_accessed INTEGER NOT NULL
)
"""
INLINE_BYTES = 4096


def config(os: str | None = "linux", isolation: str | None = None, **more: Any) -> bytes:
    labels = {"com.zlayer.isolation": isolation} if isolation is not None else {}
    return json.dumps({"architecture": "amd64", "os": os, "config": {"Labels": labels}, **more}).encode()


def manifest(config_digest: str, marker: str | None = None, **more: Any) -> bytes:
    descriptor = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": 1}
    annotations = {"com.zlayer.runtime": marker} if marker is not None else {}
    return json.dumps({"schemaVersion": 2, "config": descriptor, "layers": [], "annotations": annotations, **more}).encode()


def digest_of(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def open_writer(path: Path, *, journal: str = "wal") -> sqlite3.Connection:
    """A writer's connection, which commits each statement."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute(SCHEMA)
    return connection


def put(connection: sqlite3.Connection, path: Path, key: str, blob: bytes) -> None:
    """As ZLayer does it: what is larger than a page goes to a file beside the database, and its row stays empty."""
    inline = blob if len(blob) <= INLINE_BYTES else b""
    if not inline:
        spill = path.with_suffix(".blobs") / key.replace(":", "_").replace("/", "_")
        spill.parent.mkdir(exist_ok=True)
        spill.write_bytes(blob)
    connection.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, 1, 1)", (key, inline, len(blob)))


def put_image(connection: sqlite3.Connection, path: Path, ref: str, config_blob: bytes, marker: str | None = None, **more: Any) -> None:
    put(connection, path, digest_of(config_blob), config_blob)
    put(connection, path, f"manifest:{canonical(ref)}", manifest(digest_of(config_blob), marker, **more))


def write_cache(path: Path, images: dict[str, bytes], *, journal: str = "wal") -> None:
    """A closed cache with a config for each image."""
    with closing(open_writer(path, journal=journal)) as connection:
        for ref, blob in images.items():
            put_image(connection, path, ref, blob)
