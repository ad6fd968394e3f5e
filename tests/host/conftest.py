"""Fixtures of the tests on a real machine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.nomad_agent import server
from tests.host.oci_lab import OneImage, clear


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> OneImage:
    images = OneImage(tmp_path_factory.mktemp("layers"))
    images.fill()
    return images


@pytest.fixture(scope="session")
def nomad_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a real Nomad server."""
    with server(tmp_path_factory.mktemp("nomad")) as address:
        yield address


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A directory for the state of one driver; fails the test that leaves a container, or a part of one."""
    yield tmp_path
    assert asyncio.run(clear(tmp_path)) == []
