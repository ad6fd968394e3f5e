"""``zlayer-driver run``: a container in the foreground, and what goes wrong around it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.host.oci_lab import remains
from tools import lab

pytestmark = pytest.mark.needs("root", "linux", "runc", "conmon", "busybox")
IMAGE = "example.org/busybox:1"
LOOP = 'trap "exit 9" TERM; while echo y; do :; done'


class Cli:
    """The program over a state directory that has the image."""

    def __init__(self, root: Path) -> None:
        self._argv = [str(Path(sys.prefix, "bin", "zlayer-driver")), "--state-dir", str(root / "state")]
        lab.oci_layout(root / "layout", "1", [lab.busybox_layer()], {"Env": ["PATH=/bin"], "Cmd": ["sh"]})
        assert self.ended("pull", f"oci:{root / 'layout'}", "--as", IMAGE).returncode == 0

    def ended(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self._argv, *arguments], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def begun(self, script: str, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
        argv = [*self._argv, "run", IMAGE, "--", "sh", "-c", script]
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    yield Cli(tmp_path)
    assert remains(tmp_path) == []


def test_streams_and_exit_are_the_containers(cli: Cli) -> None:
    argv = ["run", "-e", "WORD=a=b", IMAGE, "--", "sh", "-c", "echo $WORD; echo err >&2; exit 7"]
    told = cli.ended(*argv)
    assert (told.returncode, told.stdout, told.stderr.splitlines()[-1]) == (7, "a=b\n", "err")
    document = json.loads(cli.ended(argv[0], "--json", *argv[1:]).stdout)
    assert (document["exit"]["code"], document["stdout"], document["stderr"]) == (7, "a=b\n", "err\n")


def test_an_interrupt_stops_the_container(cli: Cli) -> None:
    with cli.begun(LOOP) as process:
        assert process.stdout
        assert process.stdout.readline() == "y\n"
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 9


def test_a_reader_that_has_seen_enough_ends_the_container(cli: Cli) -> None:
    with cli.begun(LOOP) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "y\n"
        process.stdout.close()
        told = process.stderr.read()
    assert process.returncode == 1
    assert "Traceback" not in told


def test_output_that_cannot_be_written_is_said(cli: Cli) -> None:
    with Path("/dev/full").open("w") as full, cli.begun(LOOP, stdout=full) as process:
        told = process.communicate()[1]
    assert process.returncode == 1
    assert told.endswith("zlayer-driver: run: No space left on device\n")
