"""Low-communication methods: members die in every phase, stop, join; the rest hold the same bits.

Every test computes the run anew from what was committed, in numpy, and compares parameters, outer
momentum and residuals bit by bit (`outer_replay`).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from typing import Any

import pytest

from tests.torch.members import Members
from tests.torch.outer_members import Trained, train, train_twice
from tests.torch.outer_replay import check

METHODS = ("diloco", "async", "streaming", "sparse")
UNTIL = 9
LEASE_S = 3.0  # of a run on one machine
SLOW = [pytest.mark.slow]


def daily(*methods: str) -> list[Any]:
    """All methods; those not named are slow."""
    return [pytest.param(m, marks=[] if m in methods else SLOW) for m in METHODS]


def results(members: Members, *numbers: int) -> list[Trained]:
    return [members.result(number) for number in numbers]


@pytest.mark.parametrize("method", [*METHODS, "eager"])
def test_members_train_as_the_formulas_say(method: str) -> None:
    with Members(train, method, UNTIL) as members:
        members.start(0, 1, 2, start=3)
        found = results(members, 0, 1, 2)
        who = check(found, members.numbers(), method)
    assert all(numbers == [0, 1, 2] for numbers in who)
    assert all(not one.failed and one.retries == 0 for one in found)


PLACES = ("inner", "flying", "begin", "posted", "sealed", "decided", "between", "entry", "sync")
DELAYED = ("async", "streaming")  # in which reductions are on their way in the background


def phases(places: Sequence[str], *, all_slow: bool = False) -> list[Any]:
    """Every method in every phase that it has.  Two methods of each phase are for every day, in
    turn; the others are for `./dev test -m slow`."""
    found = []
    for number, place in enumerate(places):
        methods = DELAYED if place == "flying" else METHODS
        daily = {methods[number % len(methods)], methods[(number + 2) % len(methods)]}
        found += [
            pytest.param(method, place, marks=[] if method in daily and not all_slow else SLOW)
            for method in methods
        ]
    return found


def kill_one(method: str, place: str, victim: int) -> None:
    with Members(train, method, UNTIL) as members:
        rest = sorted({0, 1, 2} - {victim})
        members.start(*rest, start=3)
        doomed_at = {"inner": 8, "sync": 4}.get(place, 3)
        members.start(victim, start=3, doom=place, doomed_at=doomed_at)
        found = results(members, *rest)
        assert members.exit_code(victim) == -signal.SIGKILL
        who = check(found, members.numbers(), method)
    assert who[0] == [0, 1, 2] and who[-1] == rest
    if place == "decided":  # what is decided counts, also if nobody is left to apply it
        assert who[2] == [0, 1, 2] and who[3] == rest


@pytest.mark.parametrize(("method", "place"), phases(PLACES))
def test_a_member_is_killed_and_nothing_of_the_others_is_lost(method: str, place: str) -> None:
    kill_one(method, place, victim=0)


@pytest.mark.parametrize(("method", "place"), phases(PLACES, all_slow=True))
def test_the_member_of_the_highest_rank_is_killed(method: str, place: str) -> None:
    kill_one(method, place, victim=2)


@pytest.mark.parametrize("method", METHODS)
def test_a_member_is_killed_while_megabytes_are_reduced(method: str) -> None:
    # Large arrays are added in another order than that of ranks: these numbers keep sums exact.
    exact = {"rate": 1.0, "momentum": 0.5} if method in ("diloco", "async") else {}
    named: dict[str, Any] = {"start": 3, "width": 400}
    if exact:
        named |= {"learning_rate": 1.0, "momentum": 0.5}
    with Members(train, method, 5) as members:
        members.start(0, 2, **named)
        members.start(1, doom="reduce", doomed_at=3, **named)
        found = results(members, 0, 2)
        assert members.exit_code(1) == -signal.SIGKILL
        who = check(found, members.numbers(), method, width=400, **exact)
    assert who[0] == [0, 1, 2] and who[-1] == [0, 2]


@pytest.mark.parametrize("method", METHODS)
def test_a_reduction_that_fails_on_all_leaves_everything_as_it_was(method: str) -> None:
    with Members(train, method, UNTIL) as members:
        members.start(0, 2, start=3)
        members.start(1, start=3, spoil_at=3)
        found = results(members, 0, 1, 2)
        who = check(found, members.numbers(), method, failing=[3])
    assert all(len(one.failed) == 1 for one in found)
    assert len({one.failed[0] for one in found}) == 1
    assert all(numbers == [0, 1, 2] for numbers in who)


@pytest.mark.parametrize("method", METHODS)
def test_an_entry_that_fails_on_all_is_passed_later_and_nothing_is_lost(method: str) -> None:
    with Members(train, method, UNTIL) as members:
        members.start(0, 2, start=3)
        members.start(1, start=3, spoil_entry_at=3)
        found = results(members, 0, 1, 2)
        who = check(found, members.numbers(), method, failing_entries=[2])
    assert all(len(one.failed) == 1 for one in found)
    assert all(numbers == [0, 1, 2] for numbers in who)
    assert len({len(one.history) for one in found}) == 1  # nobody misses a report


@pytest.mark.parametrize("method", METHODS)
def test_a_joiner_whose_entry_does_not_fit_in_comes_in_when_it_tries_again(method: str) -> None:
    with Members(train, method, 60) as members:
        members.start(0, 1, start=2, pause_s=0.02)
        members.await_step(0, 4)
        members.start(2, pause_s=0.02, spoil_entry_at=1)
        found = results(members, 0, 1, 2)
    assert [len(one.failed) for one in found] == [0, 0, 1]  # the members run it without this one
    assert len({one.parameters[-1].tobytes() for one in found}) == 1
    assert len({one.digests[60] for one in found}) == 1
    assert [len(contributors) for _, _, contributors, _ in found[0].history][-1] == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_joiner_takes_part_in_what_its_state_does_not_hold(method: str) -> None:
    until = 60
    with Members(train, method, until) as members:
        members.start(0, 1, start=2, pause_s=0.02)
        members.await_step(0, 4)
        members.start(2, pause_s=0.02)
        found = results(members, 0, 1, 2)
        who = check(found, members.numbers(), method)
    joined = found[2].entered[0]
    assert joined >= 4
    assert who[: joined + 1] == [[0, 1]] * joined + [[0, 1, 2]]
    assert who[-1] == [0, 1, 2]
    assert all(not one.failed and one.retries == 0 for one in found)


@pytest.mark.parametrize("method", METHODS)
def test_a_joiner_has_fetched_what_members_hold_and_they_send_it_counters_only(method: str) -> None:
    named: dict[str, Any] = {"width": 100, "pause_s": 0.02}
    with Members(train, method, 60) as members:
        members.start(0, 1, start=2, **named)
        members.await_step(0, 4)
        members.start(2, **named)
        found = results(members, 0, 1, 2)
        check(found, members.numbers(), method, width=100)
    whole = 4 * sum(part.size for part in (*found[0].parameters, *found[0].momentum))
    assert found[0].history[-1][2] == found[2].history[-1][2] and len(found[0].history[-1][2]) == 3
    counters, sources, digest = 4 * 8, 3 * 8, 2 * 8
    for founder in found[:2]:
        assert founder.sent == [whole + counters + sources, counters + sources + digest]
    assert found[2].sent == [counters + sources + digest]


@pytest.mark.parametrize("finishes", [True, False])
def test_a_joiner_of_the_second_optimizer_does_not_go_on_from_the_first_one_s_state(
    finishes: bool,
) -> None:
    named: dict[str, Any] = {"pause_s": 0.02, "first": 3, "finishes": finishes}
    with Members(train_twice, 40) as members:
        members.start(0, 1, start=2, **named)
        members.await_step(0, 5)
        members.start(2, **{**named, "first": 0})
        found = [members.result(number) for number in (0, 1, 2)]
    assert found[0] == found[1] == found[2]
    assert found[0][1] == 3, "all three have trained together"


@pytest.mark.parametrize("method", METHODS)
def test_a_joiner_comes_in_while_a_member_is_killed(method: str) -> None:
    with Members(train, method, 60) as members:
        members.start(0, 1, start=3, pause_s=0.02)
        members.start(3, start=3, pause_s=0.02)
        members.await_step(0, 4)
        members.start(2, pause_s=0.02)
        time.sleep(0.3)
        members.signal(3)
        found = results(members, 0, 1, 2)
        who = check(found, members.numbers(), method)
    assert who[-1] == [0, 1, 2]


# "sync" the second time: it is being given the state.
JOINERS = ("fetch", "complete", "sync", "entry", "begin", "posted", "sealed", "decided", "between")


@pytest.mark.parametrize(("method", "place"), phases(JOINERS))
def test_a_joiner_that_dies_as_it_comes_in_costs_the_members_nothing(
    method: str, place: str
) -> None:
    with Members(train, method, 60) as members:
        members.start(0, 1, start=2, pause_s=0.02)
        members.await_step(0, 4)
        members.start(2, pause_s=0.02, doom=place, doomed_at=2 if place == "sync" else 1)
        found = results(members, 0, 1)
        assert members.exit_code(2) == -signal.SIGKILL
        who = check(found, members.numbers(), method)
    assert who[-1] == [0, 1]
    counted = sum(numbers == [0, 1, 2] for numbers in who)
    if place in ("fetch", "complete", "sync", "entry", "begin"):  # it has never brought anything
        assert counted == 0
    elif place == "decided" or (place == "between" and method != "async"):
        assert counted == 1
    else:  # what it had posted counts or not, for all alike
        assert counted <= 2


@pytest.mark.parametrize("how", ["late", "stopped"])
@pytest.mark.parametrize("method", daily("diloco", "async"))
def test_members_wait_for_a_joiner_that_is_sent_all_no_longer_than_they_said_or_its_lease(
    method: str, how: str
) -> None:
    named: dict[str, Any] = {"pause_s": 0.02, "join_timeout_s": 1.0}
    with Members(train, method, 400) as members:
        members.start(0, 1, start=2, **named)
        members.await_step(0, 4)
        members.start(2, doom="sync", doomed_at=2, doomed_how=how, fetches=False, **named)
        if how == "stopped":
            members.await_stop(2)
            time.sleep(LEASE_S + 1.0)  # so long the others wait for it at most, and then go on
            members.signal(2, signal.SIGCONT)
        found = results(members, 0, 1, 2)
    allowed_s = named["join_timeout_s"] if how == "late" else LEASE_S
    assert 0.9 < max(one.longest_s for one in found[:2]) < allowed_s + 2.0
    assert found[2].gave_up == (how == "late"), "it was told so, and came in the next time"
    assert len({one.parameters[-1].tobytes() for one in found}) == 1
    assert not any(one.failed for one in found[:2])


@pytest.mark.parametrize("method", daily("streaming"))
def test_a_stopped_member_is_given_up_and_comes_in_again(method: str) -> None:
    with Members(train, method, 250) as members:
        members.start(0, 1, 2, start=3, pause_s=0.02)
        members.await_step(1, 3)
        members.signal(1, signal.SIGSTOP)
        members.await_step(0, 20)
        members.signal(1, signal.SIGCONT)
        found = results(members, 0, 1, 2)
        who = check(found, members.numbers(), method)
    assert [0, 2] in who and who[-1] == [0, 1, 2]
    assert len(found[1].entered) == 2


@pytest.mark.parametrize("method", METHODS)
def test_a_member_that_leaves_costs_no_reduction(method: str) -> None:
    named: dict[str, Any] = {"start": 3, "pause_s": 0.01}
    with Members(train, method, 30) as members:
        members.start(0, 2, **named)
        members.start(1, leave_at=4, **named)
        found = results(members, 0, 2)
        members.result(1)
        who = check(found, members.numbers(), method)
    assert who[-1] == [0, 2]
    assert all(not one.failed and one.retries == 0 for one in found)


@pytest.mark.parametrize("method", daily("async"))
def test_a_member_that_is_too_slow_is_left_behind_and_comes_in_by_itself(method: str) -> None:
    with Members(train, method, 150) as members:
        named: dict[str, Any] = {"start": 3, "pause_s": 0.03, "straggler": 1.0}
        members.start(0, 2, **named)
        members.start(1, sleep_at=10, **named)
        found = results(members, 0, 1, 2)
    assert len({one.parameters[-1].tobytes() for one in found}) == 1
    assert len({len(one.history[-1][2]) for one in found}) == 1
    sizes = [len(contributors) for _, _, contributors, _ in found[0].history]
    assert min(sizes) == 2 and sizes[-1] == 3, sizes


@pytest.mark.slow
@pytest.mark.parametrize("method", DELAYED)
def test_a_member_that_is_left_behind_again_as_it_comes_in_is_not_in_before_it_is(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    named: dict[str, Any] = {"start": 3, "pause_s": 0.03, "straggler": 1.0}
    with Members(train, method, 250) as members:
        members.start(0, 2, **named)
        # The founders' entry, those at inner steps before the first sleep, and that after it.
        entries = {"async": 5, "streaming": 3}[method]
        members.start(1, sleep_at=10, sleep_entry_at=entries, **named)
        found = results(members, 0, 1, 2)
    assert caplog.text.count(" is excluded: ") == 2
    assert len({one.parameters[-1].tobytes() for one in found}) == 1
    assert not any(one.failed for one in found)
    assert len(found[1].entered) == 1  # the same object, by itself
    sizes = [len(contributors) for _, _, contributors, _ in found[0].history]
    assert min(sizes) == 2 and sizes[-1] == 3, sizes
