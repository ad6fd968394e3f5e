"""Manifests, indexes and configs: what is read of good ones, and that bad ones are refused with a reason."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zlayer_driver.image.manifest import choose, parse_config, parse_manifest
from zlayer_driver.image.values import Descriptor, Index, Limits, Malformed, Manifest

DIGEST = f"sha256:{'a' * 64}"
OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"
CONFIG = {"mediaType": f"{OCI}.config.v1+json", "digest": DIGEST, "size": 2}
LAYER = {"mediaType": f"{OCI}.layer.v1.tar+gzip", "digest": DIGEST, "size": 3}
IMAGE: dict[str, Any] = {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": CONFIG, "layers": [LAYER]}


def dumped(**changes: Any) -> bytes:
    return json.dumps({key: value for key, value in {**IMAGE, **changes}.items() if value is not None}).encode()


def test_an_oci_manifest() -> None:
    manifest = parse_manifest(dumped())
    assert isinstance(manifest, Manifest)
    assert manifest.layers == (Descriptor(f"{OCI}.layer.v1.tar+gzip", DIGEST, 3),)


def test_a_docker_manifest() -> None:
    config = {**CONFIG, "mediaType": f"{DOCKER}.container.image.v1+json"}
    layers = [{**LAYER, "mediaType": f"{DOCKER}.image.rootfs.{kind}.tar.gzip"} for kind in ("diff", "foreign.diff")]
    manifest = parse_manifest(dumped(mediaType=f"{DOCKER}.distribution.manifest.v2+json", config=config, layers=layers))
    assert isinstance(manifest, Manifest)
    assert len(manifest.layers) == 2


def test_the_carrier_may_say_the_media_type() -> None:
    assert isinstance(parse_manifest(dumped(mediaType=None)), Manifest)
    index = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
    assert parse_manifest(index, f"{DOCKER}.distribution.manifest.list.v2+json") == Index(())
    assert parse_manifest(index) == Index(())


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[]", "no JSON object"),
        (b"[" * 100_000, "no JSON"),
        (b'{"schemaVersion":2,"layers":[],"size":' + b"9" * 5000 + b"}", "no JSON"),
        (b'{"schemaVersion":NaN}', "no JSON number"),
        (dumped(schemaVersion=1), "schemaVersion 2"),
        (dumped(manifests=[]), "both an image and an index"),
        (dumped(mediaType="text/html", layers=None), "no image manifest"),
        (dumped(layers={}), "layers is no list"),
        (dumped(layers=[1]), "layers is no list"),
        (dumped(layers=[{**LAYER, "size": -1}]), "has size '-1'"),
        (dumped(layers=[{**LAYER, "size": True}]), "has size"),
        (dumped(layers=[{**LAYER, "size": 1 << 60}]), "are allowed"),
        (dumped(layers=[{**LAYER, "digest": "sha256:../../etc"}]), "no sha256 digest"),
        (dumped(layers=[{**LAYER, "digest": DIGEST + "\n"}]), "no sha256 digest"),
        (dumped(layers=[{**LAYER, "digest": DIGEST.upper()}]), "no sha256 digest"),
        (dumped(layers=[{**LAYER, "mediaType": "application/json"}]), "unknown media type"),
        (dumped(layers=[LAYER] * 300), "300 layers"),
        (dumped(config={**CONFIG, "digest": "manifest:other"}), "no sha256 digest"),
        (dumped(config={**CONFIG, "mediaType": "application/vnd.cncf.helm.config.v1+json"}), "artifact"),
        (dumped(config={**CONFIG, "size": 1 << 30}), "are allowed"),
        (dumped(config=None), "has size"),
    ],
)
def test_bad_manifests(raw: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        parse_manifest(raw)


def test_a_config() -> None:
    run = {"Entrypoint": ["/e"], "Cmd": ["c"], "Env": ["A=b"], "User": "1:2", "WorkingDir": "/w", "StopSignal": "9"}
    raw = json.dumps({"os": "linux", "architecture": "arm64", "config": run, "rootfs": {"diff_ids": [DIGEST]}}).encode()
    config = parse_config(raw)
    assert (config.os, config.arch, config.diff_ids) == ("linux", "arm64", (DIGEST,))
    assert (config.entrypoint, config.cmd, config.env) == (("/e",), ("c",), ("A=b",))
    assert (config.user, config.work_dir, config.stop_signal) == ("1:2", "/w", "9")


def test_a_config_with_nothing_said() -> None:
    config = parse_config(b'{"config":null,"rootfs":{"diff_ids":null}}')
    assert (config.os, config.cmd, config.labels, config.diff_ids) == ("", (), {}, ())


@pytest.mark.parametrize(
    "raw",
    [
        b'{"os":1}',
        b'{"config":[]}',
        b'{"config":{"Cmd":"sh"}}',
        b'{"config":{"Env":["A=\\u0000"]}}',
        b'{"config":{"Cmd":["\\ud800"]}}',
        b'{"config":{"Labels":{"a":1}}}',
        b'{"config":{"User":1000}}',
        b'{"rootfs":{"diff_ids":["x"]}}',
    ],
)
def test_bad_configs(raw: bytes) -> None:
    with pytest.raises(Malformed):
        parse_config(raw)


def entry(os: str, arch: str, variant: str = "") -> Descriptor:
    return Descriptor(f"{OCI}.manifest.v1+json", f"sha256:{os}{arch}", 1, os, arch, variant)


def test_choice_from_an_index() -> None:
    arm, amd, windows, proof = entry("linux", "arm64"), entry("linux", "amd64"), entry("windows", "amd64"), entry("unknown", "unknown")
    assert choose(Index((proof, windows, arm, amd)), "linux", "amd64") is amd
    assert choose(Index((proof, windows)), "linux", "amd64") is windows
    with pytest.raises(Malformed, match="only for linux/arm64"):
        choose(Index((arm, windows)), "linux", "amd64")
    with pytest.raises(Malformed, match="has no image"):
        choose(Index(()), "linux", "amd64")


def test_a_variant_that_the_cpu_has_and_no_lesser_one() -> None:
    five, six, seven, plain = (entry("linux", "arm", variant) for variant in ("v5", "v6", "v7", ""))
    index = Index((five, seven, six))
    assert choose(index, "linux", "arm", highest=7) is seven
    assert choose(index, "linux", "arm", highest=6) is six
    assert choose(Index((plain, six)), "linux", "arm") is plain
    eight, newer = entry("linux", "arm64", "v8"), entry("linux", "arm64", "v9")
    assert choose(Index((newer, eight)), "linux", "arm64") is eight
    with pytest.raises(Malformed, match="only for linux/amd64/v3"):
        choose(Index((entry("linux", "amd64", "v3"),)), "linux", "amd64")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*IMAGE, *LAYER, "manifests", "platform", "rootfs"]), inner)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*IMAGE, "manifests", "os", "rootfs"]), JSON))
def test_any_object_is_read_or_refused(document: dict[str, Any]) -> None:
    raw = json.dumps({**document, "schemaVersion": 2}).encode()
    for parse in (lambda: parse_manifest(raw, limits=Limits()), lambda: parse_config(raw)):
        with suppress(Malformed):
            parse()
