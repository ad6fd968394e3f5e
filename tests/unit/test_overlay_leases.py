"""The lease table: no number twice, whatever the order of calls; whole after a kill."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from zlayer_driver.errors import NetworkError
from zlayer_driver.overlay.leases import Leases, read

NUMBERS = range(2, 7)
OWNERS = st.sampled_from([f"owner-{number}" for number in range(8)])


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[Leases]:
    with closing(Leases(tmp_path / "leases.db", NUMBERS)) as made:
        yield made


def test_numbers_go_round(leases: Leases) -> None:
    assert leases.take("a", "/a").number == 2
    leases.release(leases.leave("a") or pytest.fail("it has a lease"))
    assert leases.take("b", "/b").number == 3


def test_an_owner_keeps_its_number_also_when_all_are_given(leases: Leases) -> None:
    taken = [leases.take(str(number), "") for number in NUMBERS]
    assert leases.take("4", "/new") == replace(taken[2], place="/new")


def test_a_number_from_elsewhere_is_held_for_one_owner(leases: Leases) -> None:
    assert leases.hold("a", 4).number == 4
    assert leases.hold("a", 4).number == 4
    for owner, number in (("b", 4), ("a", 5), ("c", 1), ("c", 99)):
        with pytest.raises(NetworkError):
            leases.hold(owner, number)


def test_a_lease_that_was_taken_anew_is_not_released(leases: Leases) -> None:
    leases.take("a", "/old")
    leaving = leases.leave("a")
    leases.take("a", "/new")
    assert leaving
    leases.release(leaving)
    assert leases.find("a")


def test_after_a_reboot_the_table_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "leases.db"
    with closing(Leases(path, NUMBERS)) as leases:
        leases.take("a", "/a")
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE boot SET id = 'another boot'")
        db.commit()
    with closing(Leases(path, NUMBERS)) as leases:
        assert leases.all() == []


def test_a_killed_process_loses_no_lease(tmp_path: Path) -> None:
    path = tmp_path / "leases.db"
    code = (
        "import os, sys, pathlib; from zlayer_driver.overlay.leases import Leases\n"
        f"leases = Leases(pathlib.Path({str(path)!r}), range(2, 200))\n"
        "for number in range(100): print(leases.take(str(number), '').number, flush=True)\n"
        f"os.kill(os.getpid(), {signal.SIGKILL:d})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    assert [lease.number for lease in read(path)] == [int(line) for line in done.stdout.split()]
    with closing(Leases(path, range(2, 200))) as leases:
        assert leases.take("one more", "").number == 102


def test_no_table_has_no_leases(tmp_path: Path) -> None:
    assert read(tmp_path / "leases.db") == []


class Table(RuleBasedStateMachine):
    """Against a dictionary."""

    root: Path

    def __init__(self) -> None:
        super().__init__()
        self.path = self.root / f"{id(self)}.db"
        self.leases = Leases(self.path, NUMBERS)
        self.model: dict[str, int] = {}

    @rule(owner=OWNERS)
    def take(self, owner: str) -> None:
        if owner not in self.model and len(self.model) == len(NUMBERS):
            with pytest.raises(NetworkError, match="all 5"):
                self.leases.take(owner, "")
            return
        lease = self.leases.take(owner, "")
        assert self.model.setdefault(owner, lease.number) == lease.number

    @rule(owner=OWNERS)
    def let_go(self, owner: str) -> None:
        lease = self.leases.leave(owner)
        assert (lease is not None) == (self.model.pop(owner, None) is not None)
        if lease:
            self.leases.release(lease)

    @rule()
    def begin_anew(self) -> None:
        self.leases.close()
        self.leases = Leases(self.path, NUMBERS)

    @invariant()
    def each_number_is_one_owners(self) -> None:
        assert {lease.owner: lease.number for lease in self.leases.all()} == self.model
        assert len(set(self.model.values())) == len(self.model)

    def teardown(self) -> None:
        self.leases.close()
        for path in self.root.glob(f"{self.path.name}*"):
            path.unlink()


def test_whatever_the_order_no_number_is_given_twice(tmp_path: Path) -> None:
    Table.root = tmp_path
    run_state_machine_as_test(Table, settings=settings(max_examples=40, stateful_step_count=30, deadline=None))
