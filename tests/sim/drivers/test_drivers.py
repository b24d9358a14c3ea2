"""The shipped asyncio drivers in virtual time: CoordinatorService, and MemberAgent's loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pccl.membership.events import ConnDown
from pccl.membership.service_driver import CoordinatorService
from tests.sim.batch import run_range
from tests.sim.drivers.run import draw_drivers, run_drivers
from tests.sim.mutants.catalogue import Patches
from tests.sim.script import Fault, Script

BATCH = 20


def check(first: int, count: int) -> None:
    summary = run_range((first, first + count), drivers=True)
    told = [f"{text}\n  again: ./dev sim --drivers --seed {s}" for s, text in summary.failures]
    assert not told, "\n".join(told)
    assert summary.commits > 5 * count


@pytest.mark.parametrize("first", range(0, 80, BATCH))
def test_faults_split_no_outcome_and_stop_no_run_with_the_real_event_loops_code(first: int) -> None:
    check(first, BATCH)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(50_000, 52_000, 200))
def test_many_more_seeds_find_nothing_in_the_drivers(first: int) -> None:
    check(first, 200)


def test_a_connection_that_ends_as_the_dial_is_answered_is_known_to_be_over() -> None:
    script = Script(
        seed=170052849,
        delay_s=0.05,
        think_s=0.2,
        open_steps=3,
        direct=True,
        hasty=True,
        misfit_first=True,
        faults=(
            Fault(0.1061, "start"),
            Fault(0.2092, "start"),
            Fault(0.5624, "start"),
            Fault(2.0333, "c_copy", a=51, b=21, x=0.0484, y=0.0179),
            Fault(3.3294, "c_vanish", a=42, b=29, x=0.0361, y=0.9507),
            Fault(3.3689, "c_vanish", a=34, b=31, x=0.0255, y=0.1673),
            Fault(3.4377, "c_cancel", a=37, b=23, x=0.4384, y=0.9669),
        ),
    )
    assert not run_drivers(script).failure


def test_the_same_seed_is_the_same_run_of_the_drivers() -> None:
    first, second = (run_drivers(draw_drivers(3), traced=True) for _ in range(2))
    assert first.trace == second.trace != []


def acts_at_once(p: Patches) -> None:
    """The service performs what follows a Persist without waiting for the disk."""

    def perform(self: CoordinatorService, effects: list[Any]) -> None:
        before(self, effects)
        for effect in list(self._outbox._queue):
            if isinstance(effect, tuple):
                self._outbox._queue.remove(effect)
                self._act(effect[0])

    before = p.set(CoordinatorService, "_perform", perform)


def forgets_who_has_gone(p: Patches) -> None:
    """The service tells the machine of no connection's end."""

    def post(self: CoordinatorService, event: Any) -> None:
        if not isinstance(event, ConnDown):
            before(self, event)

    before = p.set(CoordinatorService, "_post", post)


@pytest.mark.parametrize("mutant", [acts_at_once, forgets_who_has_gone])
def test_a_mutant_of_the_service_is_found(mutant: Callable[[Patches], None]) -> None:
    for seed in range(60):
        script = draw_drivers(seed)
        with Patches() as patches:
            mutant(patches)
            failure = run_drivers(script).failure
        if failure:
            assert not run_drivers(script).failure
            return
    raise AssertionError(f"{mutant.__doc__}: nothing failed")
