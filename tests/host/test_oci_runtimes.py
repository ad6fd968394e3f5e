"""The runtimes of the machine: which is taken, what is said of those that are not, and that crun does all that runc does."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.host.oci_lab import OneImage
from zlayer_driver.backends.oci import OciBackend
from zlayer_driver.backends.oci_runtimes import Runtimes
from zlayer_driver.backends.supervised.runtime import command_fault
from zlayer_driver.errors import ConfigError, Unsupported
from zlayer_driver.host import cgroups
from zlayer_driver.host.processes import capture

pytestmark = pytest.mark.needs("linux")

SUITES = ("tests/contract/test_oci.py", "tests/host/test_oci_life.py", "tests/host/test_oci_inside.py")


@pytest.mark.needs("root", "runc")
async def test_the_configured_one_is_taken() -> None:
    runtime = await Runtimes("runc").select()
    assert (runtime.name, runtime.version[:1].isdigit()) == ("runc", True)
    assert await Runtimes(runtime.path).select() == runtime
    assert await Runtimes("crun-of-nobody").select("runc") == runtime


@pytest.mark.needs("root", "runc")
async def test_the_first_that_works_is_taken() -> None:
    assert (await Runtimes().select()).name in ("crun", "runc")


@pytest.mark.needs("root", "runc", "conmon")
async def test_jobs_can_ask_for_each_runtime_by_its_version(tmp_path: Path) -> None:
    """Of one that does not work here nothing is said."""
    gvisor = tmp_path / "runsc"
    gvisor.write_text("#!/bin/sh\necho runsc version release-1\n")
    gvisor.chmod(0o755)
    runtimes = Runtimes("runc", [str(gvisor), "crun-of-nobody"])
    attributes = (await OciBackend(root=tmp_path, store=OneImage(tmp_path), runtimes=runtimes).probe()).attributes
    assert attributes["runtime.runc.version"] == attributes["runtime.version"]
    assert attributes["runtime.runsc.version"] == "release-1"
    assert "runtime.crun-of-nobody.version" not in attributes


@pytest.mark.needs("root", "runc", "conmon")
async def test_one_that_does_not_work_is_told_and_the_next_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "crun"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    told = await OciBackend(root=tmp_path, store=OneImage(tmp_path)).probe()
    assert told.attributes["runtime"] == "runc"
    assert f"{broken} does not run (status 3): install crun again" in told.description


async def test_one_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^crun-of-nobody is not installed: install crun-of-nobody$"):
        await Runtimes("crun-of-nobody").select()


async def test_a_node_without_any_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zlayer_driver.backends.oci_runtimes.PREFERRED", ("no-such", "nor-such"))
    with pytest.raises(Unsupported, match=r"no-such is not installed; nor-such is not installed"):
        await Runtimes().select()


async def test_one_that_does_not_run_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "runc"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(ConfigError, match="does not run"):
        await Runtimes(str(broken)).select()


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ('exec: "nope": executable file not found in $PATH', 127),
        ('exec: "/x": stat /x: no such file or directory', 127),
        ("executable file `nope` not found: No such file or directory", 127),
        ("open executable: Permission denied", 126),
        ("exec format error", 126),
        ("error mounting /x: no such file or directory", 0),
        ("writing file `cpuset.cpus`: Permission denied", 0),
    ],
)
def test_words_about_the_command_are_told_from_others(told: str, code: int) -> None:
    assert command_fault(told) == code


@pytest.mark.needs("root", "crun", "runc", "conmon", "busybox", "docker-registry")
@pytest.mark.timeout(180)
async def test_crun_keeps_the_contract(tmp_path: Path) -> None:
    """In a mount namespace without the v2 tree: crun refuses a hybrid one that has controllers."""
    mounted = cgroups.trees()
    away = f"umount {mounted.v2} &&" if mounted.mode is cgroups.Mode.HYBRID else ""
    execs = ("tests/host/test_oci_exec.py", "tests/host/test_oci_entry.py")
    await keeps_the_contract("crun", tmp_path, *SUITES, *execs, within=("unshare", "--mount", "sh", "-c", f'{away} exec "$@"', "sh"))


@pytest.mark.needs("root", "youki", "conmon", "busybox", "docker-registry")
@pytest.mark.timeout(180)
async def test_youki_keeps_the_contract(tmp_path: Path) -> None:
    await keeps_the_contract("youki", tmp_path, SUITES[0])


@pytest.mark.needs("root", "runsc", "conmon", "busybox", "docker-registry")
@pytest.mark.timeout(180)
async def test_gvisor_keeps_the_contract_where_it_differs(tmp_path: Path) -> None:
    """Each of its starts costs a kernel's; ``ZLAYER_TEST_RUNTIME=runsc`` runs the whole suite."""
    await keeps_the_contract(
        "runsc", tmp_path, SUITES[0], "-k", "exit_code or signal or stop_asks or exec_tells or missing_command or update"
    )


async def keeps_the_contract(runtime: str, tmp_path: Path, *chosen: str, within: Sequence[str] = ()) -> None:
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / runtime}", *chosen]
    done = await capture([*within, *tests], env={**os.environ, "ZLAYER_TEST_RUNTIME": runtime}, timeout_s=170)
    assert done.status == 0, done.stdout.decode()
