"""Networks that the driver makes: a plugin in a namespace of its own, whose overlay is one node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.conftest import PLUGIN, Site
from zlayer_driver.errors import DriverError
from zlayer_driver.model import Exit, GroupPort, Network
from zlayer_driver.wire._gen.driver_pb2 import StartTaskRequest
from zlayer_driver.wire.host import PluginHost

pytestmark = pytest.mark.needs("root", "linux", "runc", "conmon", "docker-registry", "skopeo", "busybox", "ip", "unshare")

ALLOC = "2f5d8c1e-0000-4000-8000-000000000001"
OVERLAY = {"name": "one", "network": "10.88.0.0/16", "subnet": "10.88.1.0/24", "endpoint": "192.0.2.1", "publish": True}
ALONE = [
    "unshare",
    "--net",
    "sh",
    "-c",
    'ip link add under type veth peer name far && ip addr add 192.0.2.1/24 dev under && ip link set under up && exec "$@"',
]


async def test_a_network_is_made_once_given_to_its_tasks_and_ended(site: Site) -> None:
    request = site.task("ip -4 -o addr show overlay0")
    async with site.plugin() as host:  # the image comes from a registry that the other namespace does not reach
        await host.start_task(request)
        await host.wait_task(request.id)
        await host.destroy_task(request.id)
    state = str(site.directory / "state")
    async with PluginHost.launch([*ALONE, "sh", *PLUGIN]) as host:
        await host.set_config({"state_dir": state, "overlay": [OVERLAY]})
        assert (await host.capabilities()).must_create_network
        await host.init()
        made = await host.create_network(ALLOC, "web")
        again = await host.create_network(ALLOC, "web")
        assert (made.created, again.created, again.path) == (True, False, made.path)
        task = replace(
            site.task("ip -4 -o addr show overlay0; grep web /etc/hosts"),
            alloc_id=ALLOC,
            network=Network(mode="path", netns_path=made.path, extra_hosts=(("web", made.address),)),
        )
        with pytest.raises(DriverError, match=r"port 'http' cannot lead from 192.0.2.1:70000 to 80"):
            await host.start_task(replace(task, ports=(GroupPort("http", 70000, 80, "192.0.2.1"),)))
        config = await host._config(replace(task, ports=(GroupPort("http", 20080, 80, "192.0.2.1"),)))
        told = (await host._driver("start_task", StartTaskRequest(task=config))).network_override
        assert (told.addr, dict(told.port_map)) == (made.address, {"http": 80})
        assert await host.wait_task(task.id) == Exit(0)
        await host.destroy_task(task.id)
        told = Path(task.stdout_path).read_text()
        assert f"inet {made.address}/" in told
        assert f"{made.address}\tweb" in told.replace(" ", "\t")
        await host.destroy_network(ALLOC)
        await host.destroy_network(ALLOC)
        assert not Path(made.path).exists()


async def test_without_an_overlay_there_are_no_networks_to_make(site: Site) -> None:
    async with site.plugin() as host:
        assert not (await host.capabilities()).must_create_network
        with pytest.raises(DriverError, match="no overlay"):
            await host.create_network(ALLOC)
