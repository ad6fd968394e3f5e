"""The engine backend keeps the contract with a real ``podman system service``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.engine_subject import EngineCases
from tests.contract.test_oci import busybox, pulled
from tests.host import engine_lab
from zlayer_driver.backends.engine import EngineBackend
from zlayer_driver.backends.engine_api import PODMAN
from zlayer_driver.testing.cases import Evidence

pytestmark = [pytest.mark.needs(*engine_lab.PODMAN_NEEDS, "busybox", "docker-registry"), engine_lab.ONE_AT_A_TIME]

__all__ = ["busybox", "pulled"]  # fixtures of the OCI backend's suite: the images are the same


@pytest.fixture(scope="module")
def socket() -> Iterator[str]:
    with engine_lab.podman() as served:
        yield served


class TestPodman(EngineCases):
    backend = EngineBackend
    evidence = Evidence.REAL
    engine = PODMAN
