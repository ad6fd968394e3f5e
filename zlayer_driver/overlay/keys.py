"""WireGuard key pairs: made here, kept in files that only root reads, never logged."""

from __future__ import annotations

import base64
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile

from zlayer_driver.errors import NetworkError

_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Curve25519 keys in base64, as WireGuard's tools write them."""

    private: str = field(repr=False)
    public: str


def load(path: Path) -> KeyPair:
    """The pair whose private key is in the file, which is made if it is not there."""
    try:
        private = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        private = _make(path)
    if path.stat().st_mode & 0o077:
        raise NetworkError(f"others may read the key file {path}", hint="delete it, or set its mode to 0600")
    if key := raw(private):
        return KeyPair(private, _public(key))
    raise NetworkError(f"what is in {path} is no key of 32 bytes in base64", hint="delete it, and a new one is made")


def _make(path: Path) -> str:
    """Writes a new key beside the file and links it into place: the file is whole or absent, and the first of two writers wins."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with NamedTemporaryFile("w", dir=path.parent) as draft:
        draft.write(_generate() + "\n")
        draft.flush()
        os.fsync(draft.fileno())
        with suppress(FileExistsError):
            os.link(draft.name, path)
    return path.read_text().strip()


def _generate() -> str:
    """A new private key in base64."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # noqa: PLC0415  # only WireGuard needs it

    return base64.b64encode(X25519PrivateKey.generate().private_bytes_raw()).decode()


def _public(private: bytes) -> str:
    """The public key of a private one, in base64."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # noqa: PLC0415  # only WireGuard needs it

    return base64.b64encode(X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()).decode()


def raw(key: str) -> bytes:
    """The 32 bytes of a key in base64; empty for a text that is none."""
    try:
        found = base64.b64decode(key, validate=True)
    except ValueError:
        return b""
    return found if len(found) == _KEY_BYTES else b""
