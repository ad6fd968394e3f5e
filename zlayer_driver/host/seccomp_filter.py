"""A system call filter compiled, as OCI runtimes do it, by libseccomp. The profile is a ``seccomp`` object of the runtime spec."""

from __future__ import annotations

import ctypes
import json
import os
from collections import Counter
from collections.abc import Iterator
from errno import EDOM, EEXIST, EINVAL, EPERM
from functools import cache, lru_cache
from typing import Any

Doc = dict[str, Any]

# <seccomp.h>
_ACTIONS = {
    "SCMP_ACT_KILL": 0x0000_0000,
    "SCMP_ACT_KILL_THREAD": 0x0000_0000,
    "SCMP_ACT_TRAP": 0x0003_0000,
    "SCMP_ACT_ERRNO": 0x0005_0000,
    "SCMP_ACT_TRACE": 0x7FF0_0000,
    "SCMP_ACT_LOG": 0x7FFC_0000,
    "SCMP_ACT_ALLOW": 0x7FFF_0000,
    "SCMP_ACT_KILL_PROCESS": 0x8000_0000,
}
_WITH_NUMBER = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
_OPERATORS = {f"SCMP_CMP_{name}": number for number, name in enumerate(["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"], start=1)}
_FLAGS = {"SECCOMP_FILTER_FLAG_TSYNC": 0, "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4}  # <linux/seccomp.h>
_NO_CALL = -1
_LIBRARY = "libseccomp.so.2"


class _Comparison(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class Uncompiled(Exception):
    """Why there is no filter: no library, or a profile with something that only runtimes know."""


def compiled(profile: Doc) -> tuple[bytes, int]:
    """The instructions, and the flags, as of seccomp(2). `Uncompiled`."""
    return _compiled(json.dumps(profile))


@lru_cache(8)
def _compiled(text: str) -> tuple[bytes, int]:
    profile = json.loads(text)
    try:
        flags = sum(_FLAGS[flag] for flag in profile.get("flags", ()))
        default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
        rules = list(_rules(profile.get("syscalls", ()), default))
        architectures = [name.removeprefix("SCMP_ARCH_").lower().encode() for name in profile.get("architectures", ())]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Uncompiled(f"{error!r} in the profile") from error
    library = _library()
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    try:
        for name in architectures:
            token = library.seccomp_arch_resolve_name(name)
            _check(library.seccomp_arch_add(context, ctypes.c_uint32(token)) if token else -EINVAL, name)
        for name, action, comparisons in rules:
            call = library.seccomp_syscall_resolve_name(name)
            if call != _NO_CALL:  # a name that this library does not know is none of its kernel's either
                given = (_Comparison * len(comparisons))(*comparisons)
                _check(library.seccomp_rule_add_array(context, ctypes.c_uint32(action), call, len(comparisons), given), name)
        return _exported(library, context), flags
    finally:
        library.seccomp_release(context)


def _rules(rules: list[Doc], default: int) -> Iterator[tuple[bytes, int, list[_Comparison]]]:
    """One for each call and set of comparisons that must all hold; two of one argument are alternatives, as in the runtimes."""
    for rule in rules:
        action = _action(rule["action"], rule.get("errnoRet"))
        if action == default:
            continue
        compared = [
            _Comparison(arg["index"], _OPERATORS[arg["op"]], arg["value"], arg.get("valueTwo", 0)) for arg in rule.get("args") or ()
        ]
        twice = any(count > 1 for count in Counter(each.arg for each in compared).values())
        for name in map(str.encode, rule["names"]):
            yield from ((name, action, [each]) for each in compared) if twice else [(name, action, compared)]


def _action(name: str, number: int | None) -> int:
    return _ACTIONS[name] | ((EPERM if number is None else number) & 0xFFFF if name in _WITH_NUMBER else 0)


def _exported(library: ctypes.CDLL, context: ctypes.c_void_p) -> bytes:
    fd = os.memfd_create("filter", os.MFD_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        _check(library.seccomp_export_bpf(context, fd), b"the filter")
        file.seek(0)
        return file.read()


def _check(result: int, what: bytes) -> None:
    if result < 0 and result not in (-EEXIST, -EDOM):  # what is there already, and what is of another architecture
        raise Uncompiled(f"{what.decode()}: {os.strerror(-result)}")


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise Uncompiled(str(error)) from error
    library.seccomp_init.restype = ctypes.c_void_p
    return library
