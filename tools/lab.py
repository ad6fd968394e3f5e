"""A lab on loopback: a small image made from busybox-static, and a real registry to pull it from."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import os
import select
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_READY_WITHIN_S = 20.0
_REGISTRY_CONFIG = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {directory}/registry}}, delete: {{enabled: true}}}}
http: {{addr: "{address}"}}
"""
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\nweb:x:1000:1000:web:/srv:/bin/sh\n"
GROUP = b"root:x:0:\nnogroup:x:65534:\nweb:x:1000:\nstaff:x:50:web\n"


@contextmanager
def registry(directory: Path) -> Iterator[str]:
    """A Docker registry that keeps its data in ``directory``; yields its ``host:port`` on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = directory / "registry.yml"
    config.write_text(_REGISTRY_CONFIG.format(directory=directory, address=address))
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
    with (directory / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment,
        )
    try:
        _wait_until_served(address, process)
        yield address
    finally:
        process.terminate()
        process.wait()


def _wait_until_served(address: str, process: subprocess.Popen[bytes]) -> None:
    """Returns once the registry answers; its death or silence is an error."""
    deadline = time.monotonic() + _READY_WITHIN_S
    pidfd = os.pidfd_open(process.pid)
    try:
        while time.monotonic() < deadline:
            connection = http.client.HTTPConnection(address, timeout=1)
            try:
                connection.request("GET", "/v2/")
                connection.getresponse().read()
            except OSError:
                if select.select([pidfd], [], [], 0.02)[0]:
                    break
            else:
                return
            finally:
                connection.close()
    finally:
        os.close(pidfd)
    raise RuntimeError(f"docker-registry does not answer at {address}; see registry.log beside its config")


def busybox_layer() -> bytes:
    """A tar: busybox with a link for each applet, and the files that a root file system wants."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RuntimeError("busybox is not installed: apt-get install busybox-static")
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name, mode in (
            ("bin", 0o755),
            ("etc", 0o755),
            ("proc", 0o555),
            ("sys", 0o555),
            ("dev", 0o755),
            ("root", 0o700),
            ("srv", 0o755),
            ("tmp", 0o1777),
        ):
            _add(tar, name, mode, kind=tarfile.DIRTYPE)
        _add(tar, "bin/busybox", 0o755, Path(busybox).read_bytes())
        _add(tar, "etc/passwd", 0o644, PASSWD)
        _add(tar, "etc/group", 0o644, GROUP)
        for applet in applets:
            if applet != "busybox":
                _add(tar, f"bin/{applet}", 0o777, kind=tarfile.SYMTYPE, link="busybox")
    return layer.getvalue()


def files_layer(files: Mapping[str, bytes]) -> bytes:
    """A tar of executable files by path."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name, data in files.items():
            _add(tar, name, 0o755, data)
    return layer.getvalue()


def _add(tar: tarfile.TarFile, name: str, mode: int, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.mode, info.size, info.type, info.linkname = mode, len(data), kind, link
    tar.addfile(info, io.BytesIO(data))


def oci_layout(directory: Path, tag: str, layers: Sequence[bytes], config: Mapping[str, Any] | None = None, **facts: Any) -> str:
    """Writes an OCI image layout with one image of these tars; returns its manifest digest.

    ``config`` is the image's execution config (Cmd, Env, …); ``facts`` are further top-level keys of the config, such as ``os``, and
    ``annotations`` of the manifest.
    """
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    annotations = facts.pop("annotations", {})
    document = {
        "os": "linux",
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]},
        **facts,
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(document).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [put(gzip.compress(layer, 6, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip") for layer in layers],
        **({"annotations": annotations} if annotations else {}),
    }
    descriptor = put(json.dumps(manifest).encode(), manifest["mediaType"])
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index = {"schemaVersion": 2, "manifests": [{**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}}]}
    (directory / "index.json").write_text(json.dumps(index))
    return str(descriptor["digest"])


def push(layout: Path, tag: str, reference: str) -> None:
    """Copies an image from a layout to a registry on loopback."""
    argv = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:{tag}", f"docker://{reference}"]
    subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL)
