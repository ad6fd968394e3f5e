"""Images that tasks bring: what the operator must allow."""

from __future__ import annotations

import re

import pytest

from zlayer_driver.admission import admit
from zlayer_driver.config import PluginConfig
from zlayer_driver.errors import ConfigError
from zlayer_driver.model import TaskRequest, TaskSpec


def _admit(image: str, *, alloc_dir: str = "/alloc", allow_volumes: bool = False) -> TaskSpec:
    request = TaskRequest(id="a/web/1", name="web", config={"image": image}, alloc_dir=alloc_dir)
    return admit(request, PluginConfig(allow_volumes=allow_volumes))


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive", "tarball"])
def test_a_file_lies_below_the_task_directory_and_stays_in_the_allocation(kind: str) -> None:
    spec = _admit(f"{kind}:local/app.tar:1")
    assert (spec.image, spec.image_root) == (f"{kind}:/alloc/web/local/app.tar:1", "/alloc")


def test_the_operator_may_let_tasks_see_the_whole_node() -> None:
    spec = _admit("oci-archive:/srv/app.tar", allow_volumes=True)
    assert (spec.image, spec.image_root) == ("oci-archive:/srv/app.tar", "")


@pytest.mark.parametrize(
    ("image", "alloc_dir", "reason"),
    [
        ("podman:app", "/alloc", "an engine's, which is for the command line"),
        ("docker-daemon:app", "/alloc", "an engine's, which is for the command line"),
        ("tarball:", "/alloc", "names no file"),
        ("tarball:/srv/app.tar", "", "the operator has not set allow_volumes"),
    ],
)
def test_what_is_not_the_tasks_is_refused(image: str, alloc_dir: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        _admit(image, alloc_dir=alloc_dir)
