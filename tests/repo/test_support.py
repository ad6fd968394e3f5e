"""The support matrix says no more than the suites show."""

from __future__ import annotations

import sys

import pytest

from tests.doubles.tools import BIN
from tools import support
from zlayer_driver import contract
from zlayer_driver.backends import NAMED, TABLE
from zlayer_driver.testing.cases import Evidence

SUITES = support.suites()


def test_every_backend_has_its_suite() -> None:
    modules = [entry.module for entry in (*TABLE, *NAMED.values())]
    assert list(SUITES) == list(support.names())
    assert [suite.backend.__module__ for suite in SUITES.values()] == modules


@pytest.mark.parametrize("name", SUITES)
def test_no_ability_goes_untried(name: str) -> None:
    assert contract.abilities(SUITES[name].backend) <= support.covered(SUITES[name])


@pytest.mark.parametrize("name", SUITES)
def test_what_is_real_uses_no_stand_ins(name: str) -> None:
    """A suite has them on its PATH by a fixture of its own, or by the one that suites share."""
    used = vars(sys.modules[SUITES[name].__module__])
    assert (SUITES[name].evidence is Evidence.DOUBLE) is (used.get("BIN") == BIN or "home" in used)
