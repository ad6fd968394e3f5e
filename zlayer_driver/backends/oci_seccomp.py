"""The system call filter of a container: what programs need is allowed, what reaches into the machine is not.

The names are in ``oci_seccomp.json``. Those that it does not have answer ENOSYS, so that programs fall back as they do on an older kernel (that
goes for io_uring, and for ``clone3``, whose flags a filter cannot see); what a capability would open answers EPERM while the container does
not hold it, and so does what no capability of a container opens: kernel keyrings are not namespaced, the rest changes the machine.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from errno import ENOSYS, EPERM
from functools import cache
from importlib.resources import files
from typing import Any

Doc = dict[str, Any]

_NAMESPACE_FLAGS = 0x7E02_0000  # all CLONE_NEW* of <linux/sched.h> that clone(2) takes
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFF_FFFF)  # Linux, 32-bit, both with UNAME26, and «ask»
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


def _rule(names: Collection[str], *args: Doc) -> Doc:
    return {"names": sorted(names), "action": "SCMP_ACT_ALLOW", **({"args": list(args)} if args else {})}


def _compare(value: int, operator: str) -> Doc:
    return {"index": 0, "value": value, "op": operator}


@cache
def _table() -> Doc:
    table: Doc = json.loads(files(__package__).joinpath("oci_seccomp.json").read_text())
    return table
