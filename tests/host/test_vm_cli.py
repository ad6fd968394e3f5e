"""The command line runs a container in a VM: what it prints is the guest's."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.host.vm_lab import MACHINES
from tools import lab
from zlayer_driver.backends.vm_boot import find_kernel
from zlayer_driver.image.store import ImageStore

pytestmark = [pytest.mark.needs(*MACHINES), pytest.mark.timeout(180)]
IMAGE = "example.org/busybox:1"


def cli(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from zlayer_driver.cli.main import entry; entry()", "--state-dir", str(state), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    lab.oci_layout(tmp_path / "layout", "v1", [lab.busybox_layer()], {"Env": ["PATH=/bin"], "Cmd": ["sh"]})

    async def fill() -> None:
        store = ImageStore(tmp_path / "state/images")
        await store.import_archive(f"oci:{tmp_path / 'layout'}:v1", IMAGE)
        await store.close()

    asyncio.run(fill())
    return tmp_path / "state"


def test_guests_kernel_is_printed_not_the_hosts(state: Path) -> None:
    told = cli(state, "run", "--target", "delegate", IMAGE, "--", "uname", "-r")
    assert (told.returncode, told.stdout.strip()) == (0, find_kernel().release)
    assert told.stdout.strip() != os.uname().release


def test_exit_status_is_the_containers(state: Path) -> None:
    assert cli(state, "run", "--target", "delegate", "--memory", "64", IMAGE, "--", "sh", "-c", "exit 5").returncode == 5


def test_doctor_names_the_machine(state: Path) -> None:
    rows = {row["what"]: row for row in json.loads(cli(state, "doctor", "--json").stdout)}
    assert (rows["target delegate"]["state"], rows["target delegate"]["backend"]) == ("healthy", "vm")
    assert re.match("QEMU .*, (by KVM|emulated, which is slow)", rows["target delegate"]["detail"])
