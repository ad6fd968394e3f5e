"""Image references and the names made of them, on both twins."""

from __future__ import annotations

from typing import Any

import pytest

from tests.replay.twins import TWINS
from zlayer_driver import fastpath
from zlayer_driver.errors import InvalidReference
from zlayer_driver.model import Reference

DIGEST = "sha256:" + "0123456789abcdef" * 4

pytestmark = pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__.rpartition(".")[2])


@pytest.mark.parametrize(
    ("ref", "parts", "canonical"),
    [
        ("alpine", ("docker.io", "library/alpine", "latest", None), "docker.io/library/alpine:latest"),
        ("index.docker.io/team/app:v1", ("docker.io", "team/app", "v1", None), "docker.io/team/app:v1"),
        (f"alpine@{DIGEST}", ("docker.io", "library/alpine", None, DIGEST), f"docker.io/library/alpine@{DIGEST}"),
        (f"r:5000/a:1@{DIGEST}", ("r:5000", "a", "1", DIGEST), f"r:5000/a:1@{DIGEST}"),
        ("localhost/a", ("localhost", "a", "latest", None), "localhost/a:latest"),
        ("localhost:5000", ("docker.io", "library/localhost", "5000", None), "docker.io/library/localhost:5000"),
        ("LOCALHOST/x", ("docker.io", "LOCALHOST/x", "latest", None), "docker.io/LOCALHOST/x:latest"),
        ("alpine:日本語", ("docker.io", "library/alpine", "日本語", None), "docker.io/library/alpine:日本語"),
        ("alpine:x\u0301", ("docker.io", "library/alpine", "x\u0301", None), "docker.io/library/alpine:x\u0301"),
        ("a/" * 120 + "a", ("docker.io", "a/" * 120 + "a", "latest", None), "docker.io/" + "a/" * 120 + "a:latest"),
    ],
)
def test_reference_has_parts_and_one_spelling(twin: Any, ref: str, parts: tuple[str, ...], canonical: str) -> None:
    assert twin.parse(ref) == Reference(*parts)
    assert twin.canonical(ref) == canonical
    assert twin.canonical(canonical) == canonical
    assert twin.canonical_many([ref, canonical]) == [canonical, canonical]
    assert twin.cache_keys(ref) == (f"manifest:{canonical}", f"manifest:digest-{canonical}", f"manifest-orig:{canonical}")


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "ALPINE",
        " alpine",
        "alpine\n",
        "alpine:",
        "alpine:-x",
        "alpine:a:b",
        "alpine:²",
        "alpine:" + "x" * 129,
        "alpine:" + "é" * 129,
        "alpine@",
        "alpine@sha256:abc",
        f"alpine@{DIGEST}@{DIGEST}",
        "[::1]:5000/a",
        "a//b",
        "a/",
        "/a",
        "a_.b",
        "a___b",
        "host:/a",
        "-a.io/b",
        "a-.io/b",
        "http://a/b",
        "a\0b",
        "\udcff",
        "alpine:\udcff",
        "a" * 256,
    ],
)
def test_what_is_no_reference_stays_as_it_is(twin: Any, ref: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        twin.parse(ref)
    assert caught.value.ref == ref
    assert twin.canonical(ref) == ref
    assert twin.cache_keys(ref)[0] == f"manifest:{ref}"


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        ("", "it is empty"),
        ("A", "it is not of the form [HOST[:PORT]/]PATH[:TAG][@DIGEST] with PATH in lower case"),
        ("a" * 256, "its repository is longer than 255 bytes"),
        ("a@md5:" + "0" * 32, "digest algorithm 'md5' is not supported"),
        ("a@sha512:" + "0" * 64, "a sha512 digest has 128 hex digits"),
    ],
)
def test_the_reason_says_what_is_wrong(twin: Any, ref: str, reason: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        twin.parse(ref)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("ref", "name"), [("r:5/a@b", "r_5_a_b"), ("", ""), ("..", ".."), ("é/日", "é_日"), ("\udcff/a", "\udcff_a"), ("a" * 5000, "a" * 5000)]
)
def test_directory_name_of_a_reference(twin: Any, ref: str, name: str) -> None:
    assert twin.sanitize(ref) == name
    assert twin.sanitize_many([ref, ref]) == [name, name]


def test_only_text_is_a_reference(twin: Any) -> None:
    for function in (twin.parse, twin.canonical, twin.sanitize, twin.cache_keys):
        with pytest.raises((TypeError, AttributeError)):
            function(None)


def test_the_compiled_twin_is_in_use(twin: Any) -> None:
    assert fastpath.IMPLEMENTATION == "compiled"
    assert fastpath.canonical is TWINS[0].canonical
    assert {name for name in ("BlobCache", "image_facts", "parse", "sanitize_many") if not hasattr(twin, name)} == set()
