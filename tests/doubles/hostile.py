"""The corpus of hostile images: one file for each class of fault that unpackers of containers and archives have had.

``python -m tests.doubles.hostile`` writes ``tests/data/hostile``; a test holds the files to this table. A case without a reason is not
refused: it must do no harm.
"""

from __future__ import annotations

import gzip
import json
import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.doubles.images import archive, directory, hard_link, member, symlink

ROOT = Path(__file__).parents[1] / "data/hostile"
CANARY = "/tmp/zlayer-canary"  # made by the test that runs the corpus; nothing may happen to it
_ORDERS = {f"SCHILY.xattr.{name}": "y" for name in ("trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.opaque")}


@dataclass(frozen=True)
class Case:
    """``known`` are public numbers of faults of the class; ``reason`` is how the refusal starts to be recognised."""

    known: str
    what: str
    content: bytes
    reason: str = ""


def tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Without the padding to whole records."""
    whole = archive(*members, form=form).rstrip(b"\0")
    return whole + bytes(-len(whole) % 512 + 1024)


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, max(size, 0)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    if size < 0:
        block[124:136] = b"\xff" * 4 + struct.pack(">q", size)
    return summed(block)


def summed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def sparse(*numbers: int, size: int, real: int) -> bytes:
    """GNU's old sparse format."""
    block = bytearray(header(b"S", size))
    for at, number in enumerate(numbers):
        block[386 + 12 * at : 398 + 12 * at] = b"%011o\0" % number
    block[483:495] = b"%011o\0" % real
    return summed(block) + bytes(-(-size // 512) * 512 + 1024)


def manifest(**fields: object) -> bytes:
    digest = f"sha256:{'0' * 64}"
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 2}
    return json.dumps({"schemaVersion": 2, "config": config, "layers": [], **fields}).encode()


_LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "sha256:../../../../etc/passwd", "size": 1}
_DEEP = "/".join("d" * 200)
_NO_FILE = "no file that its layer has"

CORPUS: dict[str, Case] = {
    "dotdot.tar": Case("CVE-2001-1267, CVE-2007-4559", "a name goes up", tar(member("../file", b"x")), "has '..' in it"),
    "dotdot-inside.tar": Case("CVE-2016-6321", "a name goes up behind a directory", tar(directory("a"), member("a/../../file", b"x")), "has '..'"),
    "absolute-name.tar": Case("CVE-2021-32804", "a name is absolute", tar(member(f"{CANARY}/file", b"x"))),
    "link-out.tar": Case("CVE-2014-9356, CVE-2025-4138", "a file goes through a link that leads out", tar(symlink("s", CANARY), member("s/file", b"x"))),
    "link-up.tar": Case("CVE-2014-6407", "a file goes through a link that leads up", tar(symlink("s", "../" * 30 + CANARY), member("s/file", b"x"))),
    "link-chain.tar": Case("CVE-2025-4517", "links of links lead out", tar(symlink("a", "/"), symlink("b", "a" + CANARY), member("b/file", b"x"))),
    "link-to-proc.tar": Case("", "a link leads to what the unpacker has open", tar(symlink("s", "/proc/self/root"), member(f"s{CANARY}/file", b"x"))),
    "file-over-link.tar": Case("CVE-2021-32803", "a file takes the name of a link that leads out", tar(symlink("s", f"{CANARY}/file"), member("s", b"x"))),
    "directory-over-link.tar": Case(
        "CVE-2021-37701, CVE-2021-32760", "a directory takes the name of a link, with another mode", tar(symlink("s", CANARY), directory("s", mode=0o777))
    ),
    "link-over-directory.tar": Case(
        "CVE-2021-37712", "a link takes the name of a directory that was written to", tar(directory("d"), symlink("d", CANARY), member("d/file", b"x"))
    ),
    "link-for-root.tar": Case("CVE-2021-29136", "the root itself becomes a link", tar(symlink("./", CANARY), member("file", b"x")), "named like the root"),
    "hard-link-up.tar": Case("CVE-2014-6407", "a hard link to a file above", tar(hard_link("x", "../file")), "has '..' in it"),
    "hard-link-absolute.tar": Case("CVE-2014-6407", "a hard link to a file of the host", tar(hard_link("x", f"{CANARY}/file")), _NO_FILE),
    "hard-link-through-link.tar": Case("CVE-2016-5418", "a hard link through a link", tar(symlink("s", CANARY), hard_link("x", "s/file")), _NO_FILE),
    "hard-link-chmod.tar": Case(
        "CVE-2021-32760", "a hard link to a link that leads out, and a new mode for it", tar(symlink("s", f"{CANARY}/file"), hard_link("x", "s"), member("x", b"", mode=0o777))
    ),
    "hard-link-directory.tar": Case("", "a hard link to a directory", tar(directory("d"), hard_link("x", "d")), _NO_FILE),
    "hard-link-itself.tar": Case("", "a hard link to itself", tar(member("x", b"1"), hard_link("x", "x")), "to itself"),
    "hard-link-whiteout.tar": Case("", "a hard link to a whiteout", tar(member(".wh.w"), hard_link("x", "w")), _NO_FILE),
    "link-loop.tar": Case("", "links lead to each other", tar(symlink("a", "b"), symlink("b", "a"), member("a/x")), "too many symbolic links"),
    "file-as-directory.tar": Case("", "a file has files in it", tar(member("a"), member("a/x")), "is none"),
    "fifo-as-directory.tar": Case("", "a FIFO has files in it", tar(member("a", kind=tarfile.FIFOTYPE), member("a/x")), "is none"),
    "disk.tar": Case("", "a disk of the host", tar(member("sda", kind=tarfile.BLKTYPE, devmajor=8)), "may not bring"),
    "memory.tar": Case("", "the memory of the host", tar(member("mem", kind=tarfile.CHRTYPE, devmajor=1, devminor=1)), "may not bring"),
    "whiteout-device.tar": Case("", "overlayfs's own mark of a deletion", tar(member("w", kind=tarfile.CHRTYPE)), "may not bring"),
    "whiteout-of-parent.tar": Case("", "a whiteout of the directory above", tar(member("a/.wh...")), "a whiteout of no name"),
    "whiteout-of-itself.tar": Case("", "a whiteout of its own directory", tar(member("a/.wh..")), "a whiteout of no name"),
    "whiteout-of-nothing.tar": Case("", "a whiteout of no name", tar(member("a/.wh.")), "a whiteout of no name"),
    "below-whiteout.tar": Case("", "an entry below a whiteout", tar(member(".wh.a/b")), "below a whiteout"),
    "overlay-xattrs.tar": Case("", "orders to overlayfs as extended attributes", tar(directory("d", pax_headers=_ORDERS))),
    "depth.tar": Case("", "directories in directories", tar(directory(_DEEP)), "nested more than"),
    "depth-through-links.tar": Case(
        "", "the same with a link in the middle", tar(directory(_DEEP[:200]), symlink("s", _DEEP[:200]), directory(f"s/{_DEEP[:200]}")), "nested more than"
    ),
    "owner.tar": Case("", "an owner that means «leave it»", tar(member("x", uid=0xFFFF_FFFF)), "has owner"),
    "duplicates.tar": Case("CVE-2021-37713", "names that only case or normalization tells apart", tar(member("É"), member("é"), member("e\u0301"), member("é", b"x"))),
    "huge-pax.tar": Case("CVE-2022-2879", "an extended header of 100 MB", header(b"x", 100 << 20), "extended headers of"),
    "pax-loop.tar": Case("CVE-2019-20907", "a pax record of no length", header(b"x", 10) + b"0 path=abc".ljust(512, b"\0"), "damaged pax header"),
    "negative-size.tar": Case("CVE-2025-8194", "an entry of less than no bytes", header(b"0", -512), "has size"),
    "sparse-map.tar": Case("CVE-2025-58183", "pieces of a sparse file overlap", sparse(0, 512, 0, 512, size=1024, real=1024), "overlapping or outlying"),
    "sparse-huge.tar": Case("", "a sparse file as large as it says", sparse(0, 0, size=0, real=0o77777777777 * 8), "is larger than"),
    "cut.tar": Case("", "the archive ends in an entry", tar(member("a", b"1" * 600))[:700], "ends in the middle"),
    "bomb.tar.gz": Case("CVE-2017-14992", "gzip of nothing but zeros", gzip.compress(bytes(8 << 20), 9, mtime=0), "times its size"),
    "two-kinds.json": Case("CVE-2021-41190", "a manifest that is an index too", manifest(manifests=[]), "both an image and an index"),
    "digest.json": Case("CVE-2014-9358, CVE-2024-3727", "a digest that is a path", manifest(layers=[_LAYER]), "no sha256 digest"),
}  # fmt: skip


def table() -> str:
    """The corpus for people to read."""
    rows = [
        f"| `{name}` | {case.what} | {case.known or 'none'} | {'refused' if case.reason else 'harmless'} |" for name, case in CORPUS.items()
    ]
    head = "# Hostile images\n\nMade by `python -m tests.doubles.hostile`.\n\n| file | what | known cases of the class | outcome |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    ROOT.mkdir(exist_ok=True)
    (ROOT / "README.md").write_text(table())
    for name, case in CORPUS.items():
        (ROOT / name).write_bytes(case.content)
