"""Image references, by the grammar of the OCI distribution client that ZLayer uses."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from zlayer_driver.errors import InvalidReference
from zlayer_driver.model import Reference

MAX_REPOSITORY_BYTES = 255

_LABEL = "[a-zA-Z0-9]+(?:-+[a-zA-Z0-9]+)*"
_COMPONENT = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_SHAPE = re.compile(
    rf"(?P<name>(?:{_LABEL}(?:\.{_LABEL})*(?::[0-9]+)?/)?{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[^:@/]{1,128}))?"
    r"(?:@(?P<digest>[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}))?"
)
_DIGEST_DIGITS = {"sha256": 64, "sha384": 96, "sha512": 128}
_CIRCLED_LETTERS = re.compile("[\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]")


def sanitize(ref: str) -> str:
    """The directory name under which ZLayer keeps a natively built image."""
    return ref.replace("/", "_").replace(":", "_").replace("@", "_")


def sanitize_many(refs: Iterable[str]) -> list[str]:
    return [sanitize(ref) for ref in refs]


def _is_word(char: str) -> bool:
    """Whether ``char`` is a word character of UTS #18: letters, marks, decimal digits, connectors, join controls."""
    category = unicodedata.category(char)
    return category[0] in "LM" or category in {"Nd", "Nl", "Pc"} or char in "\u200c\u200d" or _CIRCLED_LETTERS.fullmatch(char) is not None


def _is_tag(tag: str) -> bool:
    return _is_word(tag[0]) and all(char in ".-" or _is_word(char) for char in tag)


def _split(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        first, rest = "docker.io", name
    if first == "index.docker.io":
        first = "docker.io"
    if first == "docker.io" and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest


def parse(ref: str) -> Reference:
    """The parts of an image reference, by the grammar of the OCI distribution client that ZLayer uses; else `InvalidReference`."""
    found = _SHAPE.fullmatch(ref)
    if found is None or (found["tag"] and not _is_tag(found["tag"])):
        raise InvalidReference(
            ref, "it is not of the form [HOST[:PORT]/]PATH[:TAG][@DIGEST] with PATH in lower case" if ref else "it is empty"
        )
    registry, repository = _split(found["name"])
    tag, digest = found["tag"], found["digest"]
    if len(repository) > MAX_REPOSITORY_BYTES:
        raise InvalidReference(ref, f"its repository is longer than {MAX_REPOSITORY_BYTES} bytes")
    if digest:
        algorithm, _, digits = digest.partition(":")
        if algorithm not in _DIGEST_DIGITS:
            raise InvalidReference(ref, f"digest algorithm {algorithm!r} is not supported")
        if len(digits) != _DIGEST_DIGITS[algorithm]:
            raise InvalidReference(ref, f"a {algorithm} digest has {_DIGEST_DIGITS[algorithm]} hex digits")
    return Reference(registry, repository, tag or (None if digest else "latest"), digest)


def canonical(ref: str) -> str:
    """The one spelling of a reference that all caches use; a text that is no reference stays as it is."""
    try:
        registry, repository, tag, digest = parse(ref)
    except InvalidReference:
        return ref
    return f"{registry}/{repository}{f':{tag}' if tag else ''}{f'@{digest}' if digest else ''}"


def canonical_many(refs: Iterable[str]) -> list[str]:
    return [canonical(ref) for ref in refs]


def cache_keys(ref: str) -> tuple[str, str, str]:
    """The blob cache's keys for an image's manifest, its manifest digest, and its name as typed."""
    name = canonical(ref)
    return f"manifest:{name}", f"manifest:digest-{name}", f"manifest-orig:{name}"
