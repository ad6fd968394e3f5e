"""Tasks that bring their image as a file of their allocation, as an artifact block leaves it there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Site
from tools import lab
from zlayer_driver.errors import DriverError
from zlayer_driver.model import Exit

pytestmark = pytest.mark.needs("root", "linux", "runc", "conmon", "docker-registry", "skopeo", "busybox")


async def test_a_task_runs_the_image_that_it_brings(site: Site) -> None:
    request = site.task("exit 5", image="oci:local/app:1")
    lab.oci_layout(Path(request.alloc_dir, "task/local/app"), "1", [lab.busybox_layer()], {"Env": ["PATH=/bin"]})
    async with site.plugin() as host:
        await host.start_task(request)
        assert await host.wait_task(request.id) == Exit(5)
        await host.destroy_task(request.id)


async def test_no_link_leads_a_task_to_images_of_the_node(site: Site) -> None:
    layout = site.directory / "layout"
    lab.oci_layout(layout, "1", [lab.busybox_layer()], {"Env": ["PATH=/bin"]})
    async with site.plugin() as host:
        for image in ("oci:local/link:1", "oci:../../layout:1"):
            request = site.task("exit 5", image=image)
            Path(request.alloc_dir, "task/local/link").symlink_to(layout)
            with pytest.raises(DriverError, match="lies outside the allocation"):
                await host.start_task(request)
