"""Abilities are found once, by what a backend has."""

from __future__ import annotations

import inspect
from collections import Counter

import pytest

from zlayer_driver import contract
from zlayer_driver.backends.fake import FakeBackend

VERBS = ("probe", "start", "recover", "wait", "stop", "destroy")


class Halfway:
    """Has one of the two methods of an ability, and something else under the name of another."""

    signal = "SIGTERM"

    async def pause(self) -> None: ...


def members(protocol: type) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_")]


def test_abilities_of_a_backend() -> None:
    found = contract.abilities(FakeBackend())
    assert {contract.CanExec, contract.CanPause, contract.HasLogs, contract.CanPull} <= found
    assert found.isdisjoint({contract.CanStreamLogs, contract.CanSweep, contract.HasImageStore})


def test_half_an_ability_is_none() -> None:
    assert not contract.abilities(Halfway())
    assert not contract.abilities(object())


def test_abilities_are_asked_by_what_is_called() -> None:
    counted = Counter(name for ability in contract.ABILITIES for name in members(ability))
    assert set(counted.values()) == {1}, "two abilities with a method of one name cannot be told apart"
    assert set(counted).isdisjoint(VERBS)


@pytest.mark.parametrize("ability", sorted(contract.ABILITIES, key=str))
def test_every_method_leads_to_its_ability(ability: type) -> None:
    for name in members(ability):
        assert contract.declared_in(vars(ability)[name]) is ability


def test_six_verbs() -> None:
    assert {name for name, member in vars(contract.Backend).items() if inspect.iscoroutinefunction(member)} == set(VERBS)
    assert contract.declared_in(contract.Backend.wait) is contract.Backend
