"""The pure parts of the OCI backend: names, command lines, environments, files, filters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zlayer_driver.backends.supervised import etc, seccomp, security
from zlayer_driver.backends.supervised.bundle import Bundle, Record, container_id
from zlayer_driver.backends.supervised.runtime import last_error
from zlayer_driver.backends.supervised.spec import command_line, environment, hostname
from zlayer_driver.backends.supervised.users import User, resolve
from zlayer_driver.errors import InvalidSpec
from zlayer_driver.host import signals
from zlayer_driver.host.pidfd import ProcessId
from zlayer_driver.image.values import ImageConfig
from zlayer_driver.model import Network, Security, TaskSpec

TASK = TaskSpec(id="one", name="one", image="example.org/app:1")
CONFIG = ImageConfig(
    os="linux", arch="amd64", diff_ids=(), entrypoint=("/entry",), cmd=("serve", "-v"), env=("PATH=/opt", "A=image", "bad")
)


@pytest.mark.parametrize(
    ("name", "number"), [("SIGTERM", 15), ("usr1", 10), ("10", 10), ("sigkill", 9), (" INT ", 2), ("RTMIN+3", 37), ("SIGRTMAX-1", 63)]
)
def test_signals(name: str, number: int) -> None:
    assert signals.number(name) == number


@pytest.mark.parametrize("name", ["", "0", "65", "SIG", "SIGNOPE", "-9", "RTMIN+99", "RTMAX+1", "९", "9" * 5000])
def test_what_is_no_signal(name: str) -> None:
    with pytest.raises(InvalidSpec, match="is no signal"):
        signals.number(name)


@pytest.mark.parametrize(
    "task_id", ["web", "5f0c0b1e-1111-2222-3333-444455556666/web/1a2b3c4d", "../../etc", "", "ÄÖ" * 200, ".", "-x", "a b\n"]
)
def test_container_ids_are_safe_names(task_id: str) -> None:
    name = container_id(task_id)
    assert name == container_id(task_id)
    assert name.replace("-", "").isalnum()
    assert name.isascii()
    assert name[0] != "-"
    assert len(name) < 64


def test_container_ids_tell_tasks_apart() -> None:
    assert len({container_id(task_id) for task_id in ("a/b", "a-b", "a b", "A-b", "a_b")}) == 5


def test_state_directories_never_share_a_cgroup() -> None:
    assert Bundle(Path("/a"), "x").cgroup != Bundle(Path("/b"), "x").cgroup
    assert "zlayer" in Bundle(Path("/a"), "x").cgroup


def test_a_record_survives_its_json() -> None:
    record = Record("/bin/runc", "runc", "boot", ProcessId(1, 2), ProcessId(3, 4), "SIGTERM", "digest")
    assert Record.load(record.data()) == record


@pytest.mark.parametrize("data", [{}, {"init": 1}, {"runtime": "x", "boot": "y", "init": {"pid": "a"}, "supervisor": {}}])
def test_a_damaged_record_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec, match="damaged"):
        Record.load(data)


@pytest.mark.parametrize(
    ("changes", "argv"),
    [
        ({}, ["/entry", "serve", "-v"]),
        ({"args": ("x",)}, ["/entry", "x"]),
        ({"command": "run"}, ["/entry", "run"]),
        ({"command": "run", "args": ("x",)}, ["/entry", "run", "x"]),
        ({"entrypoint": ("/mine",)}, ["/mine"]),
        ({"entrypoint": ("/mine",), "args": ("x",)}, ["/mine", "x"]),
        ({"entrypoint": (), "command": "run"}, ["run"]),
    ],
)
def test_command_lines_are_dockers(changes: dict[str, Any], argv: list[str]) -> None:
    assert command_line(replace(TASK, **changes), CONFIG) == argv


def test_no_command_at_all() -> None:
    with pytest.raises(InvalidSpec, match="names no command"):
        command_line(TASK, replace(CONFIG, entrypoint=(), cmd=()))


def test_the_tasks_environment_lies_over_the_images() -> None:
    assert environment(replace(TASK, env={"A": "task", "B": "x=y"}), CONFIG, "/root") == ["PATH=/opt", "HOME=/root", "A=task", "B=x=y"]


@pytest.mark.parametrize("env", [{"A": "\0"}, {"\0": ""}, {"A=B": "x"}])
def test_variables_that_no_process_can_have(env: dict[str, str]) -> None:
    with pytest.raises(InvalidSpec, match="environment variable"):
        environment(replace(TASK, env=env), CONFIG, "/")


def test_what_the_kernel_would_not_take_is_told_before() -> None:
    most = "x" * (131_071 - len("BIG="))
    assert environment(replace(TASK, env={"BIG": most}), CONFIG, "/")[-1] == f"BIG={most}"
    with pytest.raises(InvalidSpec, match=r"environment variable 'BIG' has 131072 bytes, and the kernel takes 131071 at most"):
        environment(replace(TASK, env={"BIG": f"{most}x"}), CONFIG, "/")
    with pytest.raises(InvalidSpec, match="argument 1 of the task's command has 131072 bytes"):
        command_line(replace(TASK, entrypoint=("echo",), args=("x" * 131_072,)), CONFIG)


def test_host_names() -> None:
    bundle = Bundle(Path("/state"), container_id("one"))
    assert hostname(replace(TASK, network=Network(mode="none")), bundle) == bundle.id[-12:]
    assert hostname(replace(TASK, network=Network(mode="host", hostname="box")), bundle) == "box"


def test_resolver_files() -> None:
    assert etc.resolv_conf(Network(dns_servers=("1.1.1.1", "::1"))) == "nameserver 1.1.1.1\nnameserver ::1\n"
    with pytest.raises(InvalidSpec):
        etc.resolv_conf(Network(dns_options=("a\nnameserver 6.6.6.6",)))


def test_hosts_of_a_namespace() -> None:
    text = etc.hosts(Network(mode="none", extra_hosts=(("db", "10.0.0.1"),)), "box")
    assert text.startswith("127.0.0.1\tlocalhost\n")
    assert text.endswith("127.0.1.1\tbox\n10.0.0.1\tdb\n")


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(0, 0, (5,), "/root")),
        ("worker", User(1000, 1001, (29,), "/home/worker")),
        ("1000", User(1000, 1001, (29,), "/home/worker")),
        ("worker:audio", User(1000, 29, (), "/home/worker")),
        ("77:88", User(77, 88)),
        ("77", User(77, 0)),
        ("nomad-80123", User(80123, 80123)),
    ],
)
def test_users(tmp_path: Path, text: str, user: User) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nbroken\nworker:x:1000:1001::/home/worker:\nodd:x:-1:99999999999::/:\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nwheel:x:5:root\naudio:x:29:someone,worker\nodd:x:x:worker\n")
    assert resolve(tmp_path, text) == user


@pytest.mark.parametrize("text", ["nobody", "odd", "-1", "4294967295", "worker:nobody", "٣"])
def test_users_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("worker:x:1000:1001::/home/worker:\nodd:x:-1:99999999999::/:\n")
    with pytest.raises(InvalidSpec, match="is not in the image's"):
        resolve(tmp_path, text)


def test_further_groups(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/group").write_text("audio:x:29:\n")
    assert resolve(tmp_path, "7:8", ["audio", "30", "29"]) == User(7, 8, (29, 30))
    with pytest.raises(InvalidSpec, match="group 'video'"):
        resolve(tmp_path, "", ["video"])


def test_an_image_without_tables_still_has_root(tmp_path: Path) -> None:
    assert resolve(tmp_path, "") == User(0, 0, (), "/root")


def test_capabilities_are_given_and_taken() -> None:
    ours = security.own_capabilities()
    default = security.granted(Security(), ours)
    assert default == security.DEFAULT_CAPABILITIES & security.granted(Security(privileged=True), ours)
    assert security.granted(Security(cap_drop=("all",), cap_add=("kill",)), ours) <= {"CAP_KILL"}
    assert "CAP_CHOWN" not in security.granted(Security(cap_drop=("CAP_chown",)), ours)


def test_the_filter_opens_with_capabilities() -> None:
    closed, opened = seccomp.profile((), ()), seccomp.profile(("CAP_SYS_ADMIN",), ())
    assert "mount" not in closed["syscalls"][0]["names"]
    assert "mount" in opened["syscalls"][0]["names"]
    refused = next(rule for rule in closed["syscalls"] if rule["action"] == "SCMP_ACT_ERRNO")
    assert "mount" in refused["names"]
    assert not set(refused["names"]) & set(closed["syscalls"][0]["names"])
    assert "clone3" not in refused["names"]


def test_a_filter_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "filter.json"
    file.write_text(json.dumps(seccomp.profile((), ("SCMP_ARCH_X86_64",))))
    guards = security.kernel_guards(Security(seccomp=str(file)), frozenset(), ())
    assert guards["seccomp"] == seccomp.profile((), ("SCMP_ARCH_X86_64",))
    assert "seccomp" not in security.kernel_guards(Security(seccomp="unconfined"), frozenset(), ())
    assert "maskedPaths" in security.kernel_guards(Security(seccomp="unconfined"), frozenset(), ())


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"defaultAction": "x", "syscalls": 1}',
        '{"defaultAction": "x", "archMap": []}',
        '{"defaultAction": "x", "syscalls": [{"names": [], "includes": {}}]}',
        "[" * 100_000,
    ],
)
def test_a_file_that_is_no_filter(tmp_path: Path, text: str) -> None:
    file = tmp_path / "filter.json"
    file.write_text(text)
    with pytest.raises(InvalidSpec, match="seccomp profile"):
        seccomp.read(str(file))


def test_no_file_no_filter() -> None:
    with pytest.raises(InvalidSpec, match="'/no/such' cannot be read: No such file"):
        seccomp.read("/no/such")


@pytest.mark.parametrize(("machine", "kin"), [("x86_64", "ld-linux.so.2"), ("aarch64", "ld-musl-armhf.so.1")])
def test_the_filter_knows_the_32_bit_kin_of_images_that_have_its_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, kin: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert len(security.architectures("amd64", tmp_path)) == 1
    assert len(security.architectures("386", tmp_path)) == 2
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("/usr/lib")
    (tmp_path / "usr/lib" / kin).touch()
    assert len(security.architectures("amd64", tmp_path)) == 2


def test_the_last_error_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_error(log) == ""
    log.write_text('{"level":"error","msg":"first"}\nnoise\n{"level":"error","msg":"second"}\n{"level":"info","msg":"third"}\n[]\n')
    assert last_error(log) == "second"
