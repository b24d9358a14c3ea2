"""Which pauses are excused by what was done, and which are not."""

from __future__ import annotations

import math

from tests.churn.records import Commit, Fault, Life
from tests.churn.timeline import (
    Done,
    Span,
    counts_from,
    done_steps,
    gaps,
    left_behind,
    recoveries,
    unexplained,
)

FAR = 1000.0


def spans(*names: str) -> list[Span]:
    return [Span(name, f"host of {name}", 0.0, FAR) for name in names]


def longest(
    commits: list[float],
    faults: list[Fault],
    living: list[Span] | None = None,
    end: float | None = None,
    steps: list[Done] | None = None,
) -> float:
    living = spans("a", "b", "c") if living is None else living
    end = commits[-1] if end is None else end
    found = gaps(commits, living, faults, end=end, min_world=2, steps=steps or [])
    return max((gap.length_s for gap in found), default=0.0)


def test_a_pause_with_three_untouched_peers_has_no_excuse() -> None:
    assert longest([1.0, 2.0, 14.0, 14.1], []) == 12.0


def test_a_pause_at_the_end_counts_too() -> None:
    assert longest([1.0, 2.0], [], end=20.0) == 18.0


def test_one_stopped_peer_of_three_excuses_nothing() -> None:
    stop = Fault("stop", 2.0, 50.0, ("a",))
    assert longest([1.9, 14.0], [stop]) == 12.1


def test_two_stopped_peers_of_three_excuse_the_time_they_are_stopped() -> None:
    faults = [Fault("stop", 2.0, 8.0, ("a",)), Fault("freeze", 3.0, 12.0, ("b",))]
    assert longest([1.9, 14.0], faults) == 6.0  # from 8 on two are healthy


def test_most_members_that_cannot_be_heard_excuse_the_time_that_they_cannot() -> None:
    living = spans(*"abcde")
    cut = Fault("cut-coordinator", 2.0, 12.0, (), ("host of b", "coord"))
    stops = [Fault("stop", 2.0, 12.0, (name,)) for name in ("a", "c")]
    assert longest([1.9, 20.0], stops, living) > 18.0  # two of five
    assert longest([1.9, 20.0], [*stops, cut], living) == 8.0  # from 12 on all are heard
    assert longest([1.9, 20.0], [*stops, Fault("block", 2.0, 12.0, ("b",))], living) > 18.0
    frozen = Fault("freeze", 2.0, 90.0, ("a", "b", "c"))
    assert longest([1.9, 60.0], [frozen], living) == 60.0 - 2.0 - 45.0


def test_a_cut_touches_the_hosts_at_both_its_ends() -> None:
    cut = Fault("cut", 2.0, 12.0, (), ("host of a", "host of b"))
    assert longest([1.9, 14.0], [cut]) == 2.0
    assert longest([1.9, 14.0], [cut], spans("a", "b", "c", "d")) == 12.1


def test_who_was_killed_is_no_longer_counted() -> None:
    living = [*spans("a", "b"), Span("c", "host of c", 0.0, 5.0)]
    living[1] = Span("b", "host of b", 0.0, 4.0)
    assert longest([3.0, 30.0], [], living) == 2.0  # until only one is left
    assert longest([3.0, 30.0], [], [*living, Span("d", "host of d", 10.0, FAR)]) == 20.0


def test_a_dead_coordinator_excuses_only_when_something_had_to_be_decided() -> None:
    dead = Fault("coordinator-kill", 0.0, 20.0)
    assert longest([5.0, 18.0], [dead]) == 13.0
    kill = Fault("kill", 4.0, 4.0, ("d",))
    unsettled = [Done(3.9, 5.0), Done(5.5, 18.0)]  # the commit at 5 began before the blow
    assert longest([5.0, 18.0], [dead, kill], steps=unsettled) == 0.0
    settled = [Done(4.5, 5.0), Done(5.5, 18.0)]
    assert longest([5.0, 18.0], [dead, kill], steps=settled) == 13.0


def test_with_nobody_disturbed_a_coordinator_that_is_there_is_not_asked_for() -> None:
    assert longest([5.0, 18.0], [Fault("kill", 1.0, 1.0, ("d",))]) == 13.0


def test_a_coordinator_that_nobody_reaches_excuses_like_a_dead_one() -> None:
    cut = Fault("cut", 5.1, 30.0, (), ("coord",))
    kill = Fault("kill", 5.0, 5.0, ("d",))
    assert longest([5.0, 18.0], [cut, kill]) == 0.0
    assert longest([5.0, 18.0], [Fault("cut", 5.1, 30.0, (), ("host of a", "coord"))]) == 13.0


def test_a_fault_that_never_ends_is_one_until_the_end() -> None:
    stops = [Fault("stop", 2.0, math.inf, (name,)) for name in ("a", "b")]
    assert longest([1.5, 20.0], stops) == 0.0  # half a second is not worth a word


def commit(at: float, step: int) -> Commit:
    return Commit(at, step, "train", 1, (), "", 0, 0, 0, "")


def test_a_newcomer_counts_from_its_first_commit_or_when_it_has_waited_long_for_it() -> None:
    one = Life("a", "aa", 100.0)
    assert counts_from(one) == 110.0
    one.commits = [commit(103.0, 7)]
    assert counts_from(one) == 103.0
    one.commits = [commit(130.0, 7)]
    assert counts_from(one) == 110.0


def test_recovery_is_shown_by_a_step_begun_after_the_blow() -> None:
    one = Life("a", "aa", 0.0)
    one.invoked = [(1.0, 1), (1.5, 2), (3.0, 3)]
    one.commits = [commit(1.4, 1), commit(2.5, 2), commit(4.0, 3)]
    found = recoveries(
        done_steps([one]), [Fault("kill", 2.0, 2.0, ("b",)), Fault("stop", 1.2, 9.0, ("c",))]
    )
    assert found == {"kill": [2.0], "stop": [1.3]}


def test_an_eviction_is_explained_by_what_was_done_to_that_peer_or_its_host() -> None:
    one = Life("a", "aa", 0.0, end="Evicted", end_at=50.0)
    hosts = {"a": "h0"}

    def explained(fault: Fault) -> bool:
        return unexplained([one], hosts, [fault], within_s=30.0) == []

    assert explained(Fault("stop", 40.0, 49.0, ("a",)))
    assert explained(Fault("cut", 10.0, 45.0, (), ("h1", "h0")))
    assert not explained(Fault("stop", 5.0, 10.0, ("a",)))
    assert not explained(Fault("stop", 40.0, 49.0, ("b",)))
    assert not explained(Fault("stop", 60.0, 70.0, ("a",)))
    assert not explained(Fault("coordinator-stop", 30.0, 49.9))


def test_a_healthy_peer_that_the_run_goes_on_without_is_found() -> None:
    going, waiting = Life("a", "aa", 0.0), Life("b", "bb", 0.0)
    going.commits = [commit(float(at), at) for at in range(1, 60)]
    found = left_behind([going, waiting], spans("a", "b")[:2], [], bar_s=30.0)
    assert [life.process for life, _ in found] == ["b"]
    stopped = Fault("stop", 5.0, 50.0, ("b",))
    living = [Span(name, f"host of {name}", 0.0, 60.0) for name in ("a", "b")]
    assert left_behind([going, waiting], living, [stopped], bar_s=30.0) == []


def test_nobody_is_left_behind_where_nobody_goes_on() -> None:
    one, other = Life("a", "aa", 0.0), Life("b", "bb", 0.0)
    one.commits = [commit(1.0, 1)]
    assert left_behind([one, other], spans("a", "b")[:2], [], bar_s=30.0) == []
