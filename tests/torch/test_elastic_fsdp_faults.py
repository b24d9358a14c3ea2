"""FSDP2 replicas on an elastic group: a process dies or stops anywhere, others join meanwhile.

A replica is out as a whole once it has lost a process; all others hold the same bits, and those of
a replay of the committed history in one process.  Members are numbered as in test_elastic_fsdp.
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.torch.members import Members
from tests.torch.test_elastic_fsdp import PARTS, STEPS, checked, release, train

SLOW = [pytest.mark.slow]
LOST = r"PEER_LOST|STALE_VIEW|ABORTED"  # what is raised by what is left of a broken replica
OUT_WITHIN_S = 35.0  # after a process was stopped: far less than the group's timeout of 40 s
LONG = 14  # steps, for runs in which somebody comes in
ALWAYS = {(1, "backward"), (2, "commit"), (0, "between")}
pytestmark = pytest.mark.timeout(150)


@pytest.fixture
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as made:
        yield made


def processes(*replicas: int) -> list[int]:
    return [10 * replica + part for replica in replicas for part in range(PARTS)]


def places() -> Iterator[Any]:
    """Which of how many replicas loses which process, where, and how long after that began."""
    for replicas, victim in ((2, 10), (2, 11), (3, 0), (3, 1), (3, 20)):
        for where in ("begin", "backward", "commit", "between"):
            for delay_s in (0.0, 0.0005, 0.001, 0.002) if where == "commit" else (0.0,):
                always = (replicas, victim, where, delay_s) in {
                    (2, 10, "backward", 0.0),
                    (2, 11, "commit", 0.0),
                    (3, 1, "between", 0.0),
                }
                marks = [] if always else SLOW
                yield pytest.param(replicas, victim, where, delay_s, marks=marks)


@pytest.mark.parametrize(("replicas", "victim", "where", "delay_s"), list(places()))
def test_a_replica_that_loses_a_process_is_out_and_the_others_train_on(
    folder: str, replicas: int, victim: int, where: str, delay_s: float
) -> None:
    partner = victim + 1 if victim % 10 == 0 else victim - 1
    everyone = processes(*range(replicas))
    rest = [number for number in everyone if number not in (victim, partner)]
    with Members(train, folder) as members:
        members.start(partner, *rest, start=replicas)
        members.start(victim, start=replicas, doom=where, doomed_at=3, delay_s=delay_s)
        found = [members.result(number) for number in rest]
        committed = checked(found, members.numbers())
        assert members.exit_code(victim) == -signal.SIGKILL
        with pytest.raises(AssertionError, match=LOST):
            members.result(partner)
    assert committed[1] == list(range(replicas))
    assert committed[STEPS] == [r for r in range(replicas) if r != victim // 10]


@pytest.mark.parametrize(
    ("replicas", "victim", "where"),
    [
        pytest.param(replicas, victim, where, marks=[] if (victim, where) in ALWAYS else SLOW)
        for replicas, victim in ((2, 1), (3, 2), (3, 0))
        for where in ("begin", "backward", "commit", "between")
    ],
)
def test_a_replica_whose_machine_dies_is_out_and_the_others_train_on(
    folder: str, replicas: int, victim: int, where: str
) -> None:
    """All of its processes are killed at once, or a moment apart while they commit."""
    lost = processes(victim)
    rest = [number for number in processes(*range(replicas)) if number not in lost]
    with Members(train, folder) as members:
        members.start(*rest, start=replicas)
        for number in lost:
            members.start(
                number, start=replicas, doom=where, doomed_at=3, delay_s=0.001 * (number % 10)
            )
        found = [members.result(number) for number in rest]
        committed = checked(found, members.numbers())
        assert [members.exit_code(number) for number in lost] == [-signal.SIGKILL] * PARTS
    assert committed[1] == list(range(replicas))
    assert committed[STEPS] == [r for r in range(replicas) if r != victim]


@pytest.mark.parametrize(
    ("replicas", "victim"), [(2, 10), *(pytest.param(*p, marks=SLOW) for p in ((2, 11), (3, 1)))]
)
def test_a_replica_with_a_stopped_process_is_out_and_the_others_train_on(
    folder: str, replicas: int, victim: int
) -> None:
    partner = victim + 1 if victim % 10 == 0 else victim - 1
    rest = [number for number in processes(*range(replicas)) if number not in (victim, partner)]
    with Members(train, folder) as members:
        members.start(*processes(*range(replicas)), start=replicas, until=60, pause_s=0.05)
        members.await_step(victim, 3)
        members.signal(victim, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(AssertionError, match=LOST):
            members.result(partner)
        assert time.monotonic() - began < OUT_WITHIN_S
        found = [members.result(number) for number in rest]
        members.signal(victim, signal.SIGCONT)
        with pytest.raises(AssertionError, match=LOST):
            members.result(victim)
        committed = checked(found, members.numbers(), 60)
    assert committed[60] == [r for r in range(replicas) if r != victim // 10]


@pytest.mark.parametrize(
    "before", [1, pytest.param(2, marks=SLOW)], ids=["one replica", "two replicas"]
)
def test_a_replica_joins_in_the_middle_of_a_step(folder: str, before: int) -> None:
    old = processes(*range(before))
    with Members(train, folder) as members:
        members.start(*old, start=before, until=LONG, hold_at=3, pause_s=0.1)
        members.await_step(0, 3)
        joining = processes(before)
        members.start(*joining, until=LONG, pause_s=0.1)
        for number in joining:
            members.await_step(number, 0)
        release(folder)
        found = [members.result(number) for number in old + joining]
        committed = checked(found, members.numbers(), LONG)
    assert committed[4] == list(range(before)) and committed[LONG] == list(range(before + 1))
    assert all(not one.rolled_back for one in found)


@pytest.mark.parametrize("victim", [10, pytest.param(11, marks=SLOW), pytest.param(0, marks=SLOW)])
def test_a_replica_joins_while_another_one_loses_a_process(folder: str, victim: int) -> None:
    partner = victim + 1 if victim % 10 == 0 else victim - 1
    with Members(train, folder) as members:
        members.start(*processes(0, 1), start=2, until=LONG, hold_at=3, pause_s=0.1)
        members.await_step(victim, 3)
        members.start(*processes(2), until=LONG, pause_s=0.1)
        for number in processes(2):
            members.await_step(number, 0)
        members.signal(victim)
        release(folder)
        rest = processes(1 - victim // 10, 2)
        found = [members.result(number) for number in rest]
        committed = checked(found, members.numbers(), LONG)
        with pytest.raises(AssertionError, match=LOST):
            members.result(partner)
    assert committed[3] == [0, 1] and committed[LONG] == [1 - victim // 10, 2]


def test_a_replica_takes_the_place_of_one_that_has_died(folder: str) -> None:
    with Members(train, folder) as members:
        members.start(*processes(0), start=2, until=LONG, hold_at=6, pause_s=0.1)
        members.start(10, start=2, until=LONG)
        members.start(11, start=2, until=LONG, doom="backward", doomed_at=2)
        members.await_step(0, 6)
        members.start(*processes(2), until=LONG, pause_s=0.1)
        for number in processes(2):
            members.await_step(number, 0)
        release(folder)
        found = [members.result(number) for number in processes(0, 2)]
        committed = checked(found, members.numbers(), LONG)
        with pytest.raises(AssertionError, match=LOST):
            members.result(10)
    assert (committed[1], committed[6], committed[LONG]) == ([0, 1], [0], [0, 2])
