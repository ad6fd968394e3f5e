"""A real registry (Debian's ``docker-registry``) on a free loopback port, for as long as a test needs it."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx2

from tests.doubles.images import Built

_CONFIG = """
version: 0.1
log: {{level: info}}
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:0"{tls}}}
"""


class Registry:
    """``host`` is ``127.0.0.1:PORT``."""

    def __init__(self, host: str, scheme: str = "http") -> None:
        self.host = host
        self.url = f"{scheme}://{host}"

    def push(self, built: Built, name: str, tag: str) -> str:
        """The reference under which the image can be pulled."""
        with httpx2.Client(base_url=f"{self.url}/v2/{name}", trust_env=False, timeout=30, verify=False) as http:
            manifests = [content for content in built.blobs.values() if b'"schemaVersion"' in content[:64]]
            for digest, content in built.blobs.items():
                if content not in manifests:
                    self._blob(http, digest, content)
            for content in manifests:
                self._manifest(http, Built(content).digest, content, Built(content).media_type)
            self._manifest(http, tag, built.manifest, built.media_type)
        return f"{self.host}/{name}:{tag}"

    @staticmethod
    def _blob(http: httpx2.Client, digest: str, content: bytes) -> None:
        where = http.post("/blobs/uploads/").raise_for_status().headers["location"]
        http.put(where, params={**httpx2.URL(where).params, "digest": digest}, content=content).raise_for_status()

    @staticmethod
    def _manifest(http: httpx2.Client, name: str, content: bytes, media_type: str) -> None:
        http.put(f"/manifests/{name}", content=content, headers={"Content-Type": media_type}).raise_for_status()


@contextmanager
def running(root: Path, certificate: Path | None = None) -> Iterator[Registry]:
    """``certificate`` is a file with a certificate and its key; the registry then speaks HTTPS."""
    config = root / "registry.yml"
    tls = f", tls: {{certificate: {certificate}, key: {certificate}}}" if certificate else ""
    config.write_text(_CONFIG.format(root=root / "registry", tls=tls))
    process = subprocess.Popen(["docker-registry", "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    reader = threading.Thread(target=_forget, args=(process.stderr,))
    try:
        address = _listening(process.stderr)
        reader.start()
        yield Registry(address, "https" if certificate else "http")
    finally:
        process.terminate()
        process.wait()
        if reader.is_alive():
            reader.join()
        process.stderr.close()


def _forget(log: IO[str]) -> None:
    """A registry whose log nobody reads stops when the pipe is full."""
    for _ in log:
        pass


def _listening(log: IO[str]) -> str:
    """The address in the line that the registry logs once it takes connections."""
    seen = []
    for line in log:
        seen.append(line)
        if match := re.search(r"listening on (127\.0\.0\.1:\d+)", line):
            return match[1]
    raise AssertionError(f"the registry did not start: {''.join(seen)}")


def self_signed(directory: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody vouches for, and its key, in one file."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    certificate.write_bytes(certificate.read_bytes() + key.read_bytes())
    return certificate
