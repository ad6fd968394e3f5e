"""What is fuzzed: bytes in, an assertion that the twins agree. Each target has seeds that lead it deep."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any

from tests.doubles.blob_cache import config, digest_of, manifest, open_writer, put, put_image
from tests.fuzz.reseal import reseal
from tests.replay.twins import TWINS, stored
from zlayer_driver.choice import NodeShape
from zlayer_driver.errors import DriverError
from zlayer_driver.model import OS, ImageFacts
from zlayer_driver.model import Target as Where
from zlayer_driver.nomad.placement import Decider

VECTORS = Path(__file__).parents[1] / "data" / "vectors"
MAC = NodeShape(OS.DARWIN, frozenset({Where.PRIMARY, Where.VZ}))
REF = "docker.io/library/a:latest"


@dataclass(frozen=True)
class Target:
    run: Callable[[bytes, Path], None]
    seeds: Callable[[], list[bytes]]


def _agree(question: Callable[[Any], Any]) -> None:
    compiled, plain = (_answer(question, twin) for twin in TWINS)
    assert compiled == plain, f"compiled {compiled!r}, plain {plain!r}"


def _answer(question: Callable[[Any], Any], asked: Any) -> Any:
    """Texts of errors may differ where SQLite words them; whether there is one may not."""
    try:
        return question(asked)
    except DriverError as error:
        return type(error)


def references(data: bytes, _scratch: Path) -> None:
    ref = data.decode("utf-8", "surrogateescape")
    for name in ("canonical", "sanitize", "cache_keys", "parse"):
        _agree(methodcaller(name, ref))


def documents(data: bytes, scratch: Path) -> None:
    """The first byte says what the rest is: a sidecar, a manifest or a config."""
    kind, document = data[:1], data[1:]
    path = scratch / "blobs.sqlite"
    if kind < b"\x40":
        (scratch / "a").mkdir(exist_ok=True)
        (scratch / "a" / "metadata.json").write_bytes(document)
        _agree(lambda twin: twin.image_facts("a", [path]))
        (scratch / "a" / "metadata.json").unlink()
        return
    with closing(open_writer(path, journal="memory")) as writer:
        writer.execute("PRAGMA synchronous = OFF")
        put(writer, path, digest_of(document), document)
        put(writer, path, f"manifest:{REF}", document if kind < b"\xa0" else manifest(digest_of(document)))
    _agree(lambda twin: twin.image_facts(REF, [path]))


def _whole(path: Path) -> Callable[[Any], Any]:
    """Everything that a cache says."""

    def question(twin: Any) -> Any:
        with twin.BlobCache(path) as cache:
            keys = cache.keys()[:50]
            facts = [_answer(methodcaller("facts", ref), cache) for ref in ("a", "alpine")]
            many = [_answer(methodcaller("get_many", keys), cache), _answer(methodcaller("facts_many", ["a", "alpine"]), cache)]
            return keys, [_answer(methodcaller("get", key), cache) for key in keys], facts, many

    return question


def sqlite_pages(data: bytes, scratch: Path) -> None:
    path = scratch / "pages.sqlite"
    path.write_bytes(data)
    _agree(_whole(path))


def redb_pages(data: bytes, scratch: Path) -> None:
    """As they are; and with checksums that fit, so that damage gets past them."""
    path = scratch / "pages.redb"
    for raw in (data, reseal(data)):
        path.write_bytes(raw)
        _agree(_whole(path))


def job_lines(data: bytes, _scratch: Path) -> None:
    """A batch of lines, answered twice: by asking, and by what was kept."""

    def answers(twin: Any) -> Any:
        decider = Decider(MAC, lambda image: ImageFacts(OS.DARWIN, "vz") if "mac" in image else ImageFacts(OS.LINUX))
        lines = twin.JobLines(decider.tell, decider.know)
        return [lines.answer(data, 7), lines.answer(data, 7), lines.counts, twin.line_count(data)]

    _agree(answers)


def _line_seeds() -> list[bytes]:
    jobs = [
        b'{"id": "a", "image": "mac", "labels": {"com.zlayer.isolation": "VM", "team": "x"}, "platform": {"os": "linux", "arch": "arm64"}}',
        b'{"id":"b","image":"r.io:5000/a/linux@sha256:%s","runtime":"sandbox","more":[1,{"a":null}]}' % (b"0123456789abcdef" * 4),
        b'{"id":"c","image":"linux","platform":null,"labels":{"com.zlayer.isolation":"vz-linux"},"runtime":"vm"}',
    ]
    return [b"\n".join(jobs), *(b"\n".join([job, b"", job, job + b"\n"]) for job in jobs)]


def _reference_seeds() -> list[bytes]:
    digest = "sha256:" + "0123456789abcdef" * 4
    return [
        ref.encode()
        for ref in ("alpine", "r.io:5000/a/b-c__d:v1.2", f"a@{digest}", f"localhost/a:x@{digest}", "a:日本語", "index.docker.io/a")
    ]


def _document_seeds() -> list[bytes]:
    sidecar = json.dumps({"reference": "a", "os": "darwin", "architecture": "arm64", "size": 5}).encode()
    full = config("linux", "vm", healthcheck={}, more=[1.5e3, -0.0, "\\u00e9\\ud83d\\ude00", None, True])
    health = b'{"os":"windows","config":{"Healthcheck":{"Test":["a"],"Interval":1,"Retries":2},"Env":["A=1"],"Volumes":{"/a":{}}}}'
    return [
        b"\0" + sidecar,
        b"\x50" + manifest("sha256:" + "0" * 64, "vz", subject=None),
        b"\x50" + manifest("sha256:" + "0" * 64, "vz", layers=[{"mediaType": "l", "digest": "d", "size": -1, "urls": ["u"]}]),
        b"\xf0" + full,
        b"\xf0" + health,
        b"\xf0" + b'{"os":"linux","a":' + b"[" * 126 + b"]" * 126 + b"}",
    ]


def _sqlite_seeds() -> list[bytes]:
    found = []
    for page_bytes in (512, 4096):
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as memory:
            memory.execute(f"PRAGMA page_size = {page_bytes}")
            with closing(open_writer(Path(":memory:"), journal="memory")) as source:
                for ref in ("a", "alpine", *(f"filler:{i}" for i in range(12))):
                    put_image(source, Path("unused"), ref, config("linux", "vm", pad="x" * 200))
                memory.executescript("\n".join(source.iterdump()))
            found.append(memory.serialize())
    return found


def _redb_seeds() -> list[bytes]:
    return [stored(VECTORS / "redb" / "shared" / f"{name}.redb") for name in ("r4-small", "r3-small", "r4-emptytables", "r4-quickrepair")]


TARGETS = {
    "references": Target(references, _reference_seeds),
    "documents": Target(documents, _document_seeds),
    "job_lines": Target(job_lines, _line_seeds),
    "sqlite_pages": Target(sqlite_pages, _sqlite_seeds),
    "redb_pages": Target(redb_pages, _redb_seeds),
}
