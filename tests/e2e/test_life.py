"""Whole lives of tasks: a real plugin process, a real registry, real containers, and the client side of the wire."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Fifo, Site
from zlayer_driver.errors import DriverError
from zlayer_driver.model import Exit, Resources

pytestmark = pytest.mark.needs("root", "linux", "runc", "conmon", "docker-registry", "skopeo", "busybox")

LINES = 20_000


@pytest.mark.parametrize("code", [0, 7, 137])
async def test_exit_codes(site: Site, code: int) -> None:
    async with site.plugin() as host:
        request = site.task(f"exit {code}")
        await host.start_task(request)
        assert await host.wait_task(request.id) == Exit(code)
        await host.destroy_task(request.id)


async def test_a_signal_death_has_its_signal(site: Site) -> None:
    async with site.plugin() as host:
        request = site.task("trap - TERM; while :; do sleep 1; done")
        await host.start_task(request)
        await host.signal_task(request.id, "SIGKILL")
        assert await host.wait_task(request.id) == Exit(137, 9)
        await host.destroy_task(request.id)


async def test_out_of_memory_is_told(site: Site) -> None:
    async with site.plugin() as host:
        request = site.task("dd if=/dev/zero of=/dev/null bs=200M count=1", resources=Resources(memory_bytes=32 << 20))
        await host.start_task(request)
        ended = await host.wait_task(request.id)
        assert (ended.code, ended.oom_killed) == (137, True)
        await host.destroy_task(request.id)


async def test_stdout_and_stderr_apart_and_whole(site: Site) -> None:
    request = site.task(f"i=0; while [ $i -lt {LINES} ]; do echo out $i; echo err $i >&2; i=$((i+1)); done")
    out, err = Fifo(request.stdout_path), Fifo(request.stderr_path)
    async with site.plugin() as host:
        out.open()
        err.open()
        await host.start_task(request)
        assert await host.wait_task(request.id) == Exit(0)
        await asyncio.gather(out.ended.wait(), err.ended.wait())
        await host.destroy_task(request.id)
    out.close()
    err.close()
    assert out.data.decode() == "".join(f"out {i}\n" for i in range(LINES))
    assert err.data.decode() == "".join(f"err {i}\n" for i in range(LINES))


@pytest.mark.parametrize(
    ("image", "signal", "expected"),
    [("stopper", "", "usr1"), ("stopper", "SIGINT", "int"), ("plain", "", "term")],
)
async def test_stop_sends_the_right_signal(site: Site, image: str, signal: str, expected: str) -> None:
    script = (
        "trap 'echo usr1; exit 0' USR1; trap 'echo int; exit 0' INT; trap 'echo term; exit 0' TERM; echo up; while :; do sleep 0.1; done"
    )
    request = site.task(script, image=getattr(site.registry, image))
    out = Fifo(request.stdout_path)
    async with site.plugin() as host:
        out.open()
        await host.start_task(request)
        await out.until(b"up\n")
        await host.stop_task(request.id, timeout_s=10, signal=signal)
        assert await host.wait_task(request.id) == Exit(0)
        await out.ended.wait()
        await host.destroy_task(request.id)
    out.close()
    assert out.data.decode().split() == ["up", expected]


async def test_stop_kills_when_the_timeout_is_over(site: Site) -> None:
    request = site.task("trap '' TERM; echo up; while :; do sleep 0.1; done")
    out = Fifo(request.stdout_path)
    async with site.plugin() as host:
        out.open()
        await host.start_task(request)
        await out.until(b"up\n")
        begun = time.monotonic()
        await host.stop_task(request.id, timeout_s=0.7)
        took = time.monotonic() - begun
        assert await host.wait_task(request.id) == Exit(137, 9)
        await host.destroy_task(request.id)
    out.close()
    assert took >= 0.7


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"image": "{registry}/e2e/nothing:1"}, ["e2e/nothing:1", "not"]),
        ({"command": "/bin/nonsense", "args": []}, ["command '/bin/nonsense' is not in image"]),
        ({"imagine": "x"}, ["imagine", "config"]),
        ({"image": "UPPER/case:1:2"}, ["UPPER/case:1:2", "reference"]),
        ({"runtime": "vz"}, ["vz", "no vz"]),
        ({"work_dir": "relative"}, ["work_dir"]),
    ],
)
async def test_what_is_wrong_is_one_sentence(site: Site, config: dict[str, Any], told: list[str]) -> None:
    request = site.task("true")
    filled = {key: value.format(registry=site.registry.address) if isinstance(value, str) else value for key, value in config.items()}
    request = replace(request, config={**request.config, **filled})
    async with site.plugin() as host:
        with pytest.raises(DriverError) as caught:
            await host.start_task(request)
        text = str(caught.value)
        assert all(part in text for part in told), text
        assert "\n" not in text
        assert "Traceback" not in text
        good = site.task("exit 4")
        await host.start_task(good)
        assert (await host.wait_task(good.id)).code == 4
        await host.destroy_task(good.id)


async def test_the_allocation_is_there_and_the_environment_merged(site: Site) -> None:
    request = site.task(
        "echo $GREETING; echo $PATH; pwd; id -u; echo from task > /local/file; ls -d /alloc /secrets",
        env={"GREETING": "hello"},
        user="nobody",
    )
    request = replace(request, config={**request.config, "work_dir": "/tmp"})
    local = Path(request.alloc_dir, "task", "local")
    local.chmod(0o777)
    async with site.plugin() as host:
        await host.start_task(request)
        assert await host.wait_task(request.id) == Exit(0)
        await host.destroy_task(request.id)
    assert Path(request.stdout_path).read_text().split() == ["hello", "/bin", "/tmp", "65534", "/alloc", "/secrets"]
    assert (local / "file").read_text() == "from task\n"


async def test_exec_in_a_running_task(site: Site) -> None:
    request = site.task("sleep 600")
    async with site.plugin() as host:
        await host.start_task(request)
        done = await host.exec_task(request.id, ["sh", "-c", "echo out; echo err >&2; exit 5"])
        assert (done.exit.code, done.stdout, done.stderr) == (5, b"out\n", b"err\n")
        assert (await host.exec_task(request.id, ["no-such-command"])).exit.code == 127
        with pytest.raises(DriverError, match="longer than"):
            await host.exec_task(request.id, ["sleep", "600"], timeout_s=0.2)
        await host.stop_task(request.id, timeout_s=0)
        await host.destroy_task(request.id)


async def test_an_image_for_another_system_is_for_another_node(site: Site) -> None:
    request = site.task("true")
    request = replace(request, config={**request.config, "platform": [{"os": "windows"}]})
    async with site.plugin() as host:
        with pytest.raises(DriverError, match="windows") as caught:
            await host.start_task(request)
        assert caught.value.recoverable
