"""The twins give the same answers to anything."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.doubles.blob_cache import config, digest_of, manifest, open_writer, put
from tests.replay.twins import TWINS
from zlayer_driver.errors import InvalidReference
from zlayer_driver.model import ImageFacts

component = st.from_regex(r"[a-z0-9]{1,6}([._-]{1,3}[a-z0-9]{1,3}){0,2}", fullmatch=True)
host = st.from_regex(r"([A-Za-z0-9_-]{1,5}\.){0,2}[A-Za-z0-9-]{1,5}(:[0-9]{1,5})?", fullmatch=True) | st.sampled_from(
    ["localhost", "docker.io", "index.docker.io", "docker.io:443"]
)
tag = st.from_regex(r"\w[\w.-]{0,20}", fullmatch=True) | st.text(max_size=3)
digest = st.from_regex(r"(sha(256|384|512)|[a-z]{1,4}([+._-][a-z]{1,3})?):[0-9a-fA-F]{30,130}", fullmatch=True)
reference = st.builds(
    lambda host_, path, tag_, digest_: "".join([f"{host_}/" if host_ else "", "/".join(path), tag_, digest_]),
    st.none() | host,
    st.lists(component, min_size=1, max_size=4),
    st.just("") | tag.map(lambda text: f":{text}"),
    st.just("") | digest.map(lambda text: f"@{text}"),
)


def parsed(twin: Any, ref: str) -> Any:
    try:
        return tuple(twin.parse(ref))
    except InvalidReference as error:
        return error.reason


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(ref=reference | st.text(st.characters(exclude_categories=[]), max_size=60))
def test_references(ref: str) -> None:
    compiled, plain = TWINS
    assert parsed(compiled, ref) == parsed(plain, ref)
    assert compiled.canonical(ref) == plain.canonical(ref)
    assert compiled.canonical(compiled.canonical(ref)) == compiled.canonical(ref)
    assert compiled.sanitize(ref) == plain.sanitize(ref)
    assert compiled.cache_keys(ref) == plain.cache_keys(ref)


name = st.sampled_from(
    [
        "os",
        "os.version",
        "config",
        "Labels",
        "com.zlayer.isolation",
        "annotations",
        "com.zlayer.runtime",
        "layers",
        "digest",
        "size",
        "schemaVersion",
        "mediaType",
        "Healthcheck",
        "Interval",
        "Retries",
        "Env",
        "Volumes",
        "urls",
        "subject",
        "reference",
        "architecture",
    ]
)
scalar = st.sampled_from(
    ["linux", "windows", "darwin", "", "vz", None, True, False, -1, 0, 1, 2**32, 2**64 - 1, 2**64, -(2**63), 1.5, 1e300]
)
value = st.recursive(
    scalar | st.text(st.characters(exclude_categories=[]), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(name | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
WELL_FORMED = [config("linux", "vm", extra=[1, {"a": "\\"}]), manifest("sha256:" + "0" * 64, "vz")]


@st.composite
def document(draw: st.DrawFn) -> bytes:
    """JSON, mostly with fields that matter; or something near it."""
    base = json.loads(draw(st.sampled_from(WELL_FORMED)))
    base.update(draw(st.dictionaries(name, value, max_size=3)))
    text = json.dumps(base, ensure_ascii=draw(st.booleans()), allow_nan=True).encode("utf-8", "surrogatepass")
    at = draw(st.integers(0, len(text)))
    insert = draw(st.sampled_from([b"", b"", b" ", b"\\", b'"', b"{", b"]", b"\xff", b"e9", b"0", b",", b"\\ud800", b"\x01", b"-"]))
    return text[:at] + insert + text[at + draw(st.integers(0, 2)) :]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("twins") / "blobs.sqlite"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(raw=document(), as_manifest=st.booleans())
def test_documents(cache: Path, raw: bytes, as_manifest: bool) -> None:
    with closing(open_writer(cache)) as writer:
        put(writer, cache, digest_of(raw), raw)
        put(writer, cache, "manifest:docker.io/library/a:latest", raw if as_manifest else manifest(digest_of(raw)))
    compiled, plain = (twin.image_facts("a", [cache]) for twin in TWINS)
    assert compiled == plain
    assert isinstance(compiled, ImageFacts)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(raw=document())
def test_sidecars(cache: Path, raw: bytes) -> None:
    sidecar = cache.parent / "b" / "metadata.json"
    sidecar.parent.mkdir(exist_ok=True)
    sidecar.write_bytes(raw)
    compiled, plain = (twin.image_facts("b", [cache]) for twin in TWINS)
    assert compiled == plain
