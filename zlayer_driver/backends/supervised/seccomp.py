"""The system call filter of a container: what programs need is allowed, what reaches into the machine is not.

The names are in ``seccomp.json``. Those that it does not have answer ENOSYS, so that programs fall back as they do on an older kernel (that
goes for io_uring, and for ``clone3``, whose flags a filter cannot see); what a capability would open answers EPERM while the container does
not hold it, and so does what no capability of a container opens: kernel keyrings are not namespaced, the rest changes the machine.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from errno import ENOSYS, EPERM
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from zlayer_driver.errors import InvalidSpec

Doc = dict[str, Any]

_NAMESPACE_FLAGS = 0x7E02_0000  # all CLONE_NEW* of <linux/sched.h> that clone(2) takes
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFF_FFFF)  # Linux, 32-bit, both with UNAME26, and «ask»
_FILE_LIMIT = 1 << 20
_KEYS = frozenset({"defaultAction", "defaultErrnoRet", "architectures", "flags", "syscalls"})
_RULE_KEYS = frozenset({"names", "action", "errnoRet", "args"})
_AF_VSOCK = 40  # reaches the hypervisor around every network namespace


def profile(held: Collection[str], architectures: Collection[str]) -> Doc:
    """The ``seccomp`` object of a runtime spec for a container that holds these capabilities."""
    table = _table()
    gated = table["by_capability"]
    allowed = frozenset(table["allowed"]).union(*(names for capability, names in gated.items() if capability in held))
    refused = frozenset(table["refused"]).union(*gated.values()) - allowed - {"clone3"}
    rules: list[Doc] = [
        _rule(allowed),
        *(_rule(["personality"], _compare(value, "SCMP_CMP_EQ")) for value in _PERSONALITIES),
        _rule(["socket"], _compare(_AF_VSOCK, "SCMP_CMP_NE")),
        {"names": sorted(refused), "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM},
    ]
    if "CAP_SYS_ADMIN" in held:
        rules.append(_rule(["clone"]))
    else:
        rules.append(_rule(["clone"], {"index": 0, "value": _NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}))
    return {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": ENOSYS, "architectures": list(architectures), "syscalls": rules}


def read(path: str) -> Doc:
    """The ``seccomp`` object of a file. `InvalidSpec` unless it is in the runtime spec's own format.

    Docker's profiles look alike, but have conditions that no runtime knows: rules meant for some containers would hold for all.
    """
    try:
        with Path(path).open("rb") as file:
            found = json.loads(file.read(_FILE_LIMIT))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidSpec(f"seccomp profile {path!r} cannot be read: {getattr(error, 'strerror', None) or 'it is not JSON'}") from error
    rules = found.get("syscalls", []) if isinstance(found, dict) else None
    known = isinstance(rules, list) and all(isinstance(rule, dict) and _RULE_KEYS.issuperset(rule) for rule in rules)
    if not known or not _KEYS.issuperset(found) or "defaultAction" not in found:
        raise InvalidSpec(f"seccomp profile {path!r} is not in the format of the OCI runtime spec", hint="Docker's own format is another")
    profile: Doc = found
    return profile


def _rule(names: Collection[str], *args: Doc) -> Doc:
    return {"names": sorted(names), "action": "SCMP_ACT_ALLOW", **({"args": list(args)} if args else {})}


def _compare(value: int, operator: str) -> Doc:
    return {"index": 0, "value": value, "op": operator}


@cache
def _table() -> Doc:
    table: Doc = json.loads(files(__package__).joinpath("seccomp.json").read_text())
    return table
