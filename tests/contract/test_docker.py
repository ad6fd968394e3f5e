"""The engine backend keeps the contract with a real ``dockerd``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.contract.engine_subject import EngineCases
from tests.contract.test_oci import busybox, pulled
from tests.host import engine_lab
from zlayer_driver.backends.engine import EngineBackend
from zlayer_driver.backends.engine_api import DOCKER
from zlayer_driver.model import Exit, Resources
from zlayer_driver.testing.cases import Evidence, ended
from zlayer_driver.testing.subject import Subject

pytestmark = pytest.mark.needs(*engine_lab.DOCKER_NEEDS, "busybox", "docker-registry")

__all__ = ["busybox", "pulled"]  # fixtures of the OCI backend's suite: the images are the same


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with engine_lab.docker(tmp_path_factory.mktemp("docker")) as served:
        yield served


class TestDocker(EngineCases):
    backend = EngineBackend
    evidence = Evidence.REAL
    engine = DOCKER

    async def test_memory_that_runs_out_is_told_from_a_kill(self, subject: Subject) -> None:
        hungry = replace(subject.exits("task", 0), args=("-c", "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done"))
        handle = await subject.start(replace(hungry, resources=Resources(memory_bytes=16 << 20)))
        assert await ended(subject, handle) == Exit(137, 9, oom_killed=True)
        await subject.backend.destroy(handle)
