"""Compiled filters, read as the kernel reads them: classic BPF over the number, the architecture and the arguments of a call."""

from __future__ import annotations

import ctypes
import struct
from errno import ENOSYS, EPERM
from typing import Any

import pytest

from zlayer_driver.backends.supervised import seccomp
from zlayer_driver.backends.supervised.security import DEFAULT_CAPABILITIES
from zlayer_driver.host.seccomp_filter import Uncompiled, compiled

pytestmark = pytest.mark.needs("linux")

X86_64 = 0xC000_003E  # AUDIT_ARCH_X86_64 of <linux/audit.h>
ALLOW, ERRNO, KILL = 0x7FFF_0000, 0x0005_0000, 0x0000_0000
CALLS = {"read": 0, "socket": 41, "clone": 56, "mount": 165, "keyctl": 250, "unshare": 272, "personality": 135, "clone3": 435}  # on x86-64


def judged(program: bytes, call: int, *arguments: int, architecture: int = X86_64) -> int:
    """What the filter returns: <linux/filter.h>, <linux/seccomp.h>, struct seccomp_data."""
    data = struct.pack("<iIQ6Q", call, architecture, 0, *(*arguments, *[0] * 6)[:6])
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    held, at = 0, 0
    while True:
        operation, true, false, value = code[at]
        at += 1
        match operation:
            case 0x20:  # load
                (held,) = struct.unpack_from("<I", data, value)
            case 0x54:  # and
                held &= value
            case 0x05:  # jump
                at += value
            case 0x15 | 0x25 | 0x35:  # jump if equal, greater, not less
                at += true if {0x15: held == value, 0x25: held > value, 0x35: held >= value}[operation] else false
            case 0x06:  # return
                return int(value)
            case other:
                raise AssertionError(f"operation {other:#x}")


def errno(number: int) -> int:
    return ERRNO | number


def default(capabilities: frozenset[str] = DEFAULT_CAPABILITIES) -> bytes:
    program, flags = compiled(seccomp.profile(capabilities, ("SCMP_ARCH_X86_64",)))
    assert flags == 0
    return program


@pytest.mark.parametrize(
    ("call", "arguments", "verdict"),
    [
        ("read", (), ALLOW),
        ("mount", (), errno(EPERM)),
        ("keyctl", (), errno(EPERM)),
        ("clone3", (), errno(ENOSYS)),
        ("clone", (0x11,), ALLOW),
        ("clone", (0x1000_0000,), errno(ENOSYS)),  # CLONE_NEWUSER
        ("socket", (2,), ALLOW),
        ("socket", (40,), errno(ENOSYS)),  # AF_VSOCK
        ("personality", (8,), ALLOW),
        ("personality", (1,), errno(ENOSYS)),
    ],
)
def test_the_default_profile(call: str, arguments: tuple[int, ...], verdict: int) -> None:
    assert judged(default(), CALLS[call], *arguments) == verdict


def test_every_call_has_the_verdict_of_its_profile() -> None:
    library = ctypes.CDLL("libseccomp.so.2")
    profile = seccomp.profile(DEFAULT_CAPABILITIES, ("SCMP_ARCH_X86_64",))
    verdicts = {"SCMP_ACT_ALLOW": ALLOW, "SCMP_ACT_ERRNO": errno(EPERM)}
    named = {name: verdicts[rule["action"]] for rule in profile["syscalls"] if not rule.get("args") for name in rule["names"]}
    wanted = {library.seccomp_syscall_resolve_name(name.encode()): verdict for name, verdict in named.items()}
    program, compared = default(), {CALLS[name] for name in ("personality", "socket", "clone")}
    for call in set(range(600)) - compared:
        assert judged(program, call) == wanted.get(call, errno(ENOSYS)), call


def test_a_capability_opens_its_calls() -> None:
    assert judged(default(DEFAULT_CAPABILITIES | {"CAP_SYS_ADMIN"}), CALLS["mount"]) == ALLOW


def test_a_program_of_another_architecture_is_killed_unless_that_is_named() -> None:
    i386 = 0x4000_0003
    assert judged(default(), 3, architecture=i386) == KILL
    program, _ = compiled(seccomp.profile(DEFAULT_CAPABILITIES, ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86")))
    assert [judged(program, call, architecture=i386) for call in (3, 192, 403)] == [ALLOW] * 3  # read, mmap2, clock_gettime64


def rule(*args: dict[str, Any], action: str = "SCMP_ACT_KILL_PROCESS") -> dict[str, Any]:
    return {"names": ["mount"], "action": action, "args": list(args)}


def test_comparisons_of_one_argument_are_alternatives_and_of_several_conditions() -> None:
    def verdict(profile_rule: dict[str, Any], *arguments: int) -> bool:
        program, _ = compiled({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [profile_rule]})
        return judged(program, CALLS["mount"], *arguments) != ALLOW

    one = rule({"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"})
    two = rule({"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 2, "op": "SCMP_CMP_GE"})
    assert [verdict(one, number) for number in (1, 2, 3)] == [True, True, False]
    assert [verdict(two, *numbers) for numbers in ((1, 2), (1, 9), (1, 1), (2, 2))] == [True, True, False, False]


def test_flags_are_those_of_the_call() -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]}
    assert compiled(profile)[1] == 2


@pytest.mark.parametrize(
    "profile",
    [
        {"defaultAction": "SCMP_ACT_NOTIFY"},
        {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]},
        {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PDP11"]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": "one"}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [3], "action": "SCMP_ACT_ERRNO"}]},
        {},
    ],
)
def test_a_profile_for_runtimes_only_is_told(profile: dict[str, Any]) -> None:
    with pytest.raises(Uncompiled):
        compiled(profile)
