"""The offline checker, shown what it must find: every rule has a planted violation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.churn.checker import check
from tests.churn.records import Commit, Failure, Life, Sight
from tests.faults import values

A, B, C, D = "aa" * 16, "bb" * 16, "cc" * 16, "dd" * 16
COUNT = 64


def commit(step: int, *peers: str) -> Commit:
    whole = values.expected_sum([bytes.fromhex(peer) for peer in peers], step, COUNT)
    return Commit(
        at=float(step),
        step=step,
        name="train",
        epoch=2 + step // 4,
        contributors=peers,
        digest=values.digest(whole),
        retries=0,
        wrong=0,
        lineage=1,
        state=f"state after {step}",
    )


def life(peer: str, *steps: int) -> Life:
    """A sound life: A and B together in every step."""
    made = Life(f"process of {peer[:2]}", peer, 0.0)
    for step in steps:
        made.invoked.append((step - 0.5, step))
        made.commits.append(commit(step, A, B))
    made.events = list(made.commits)
    made.sights = [Sight(float(s), 2 + s // 4, (A, B)) for s in steps]
    return made


def world() -> tuple[Life, Life]:
    return life(A, 1, 2, 3, 4, 5), life(B, 1, 2, 3, 4, 5)


def told(one: Life, place: int, **changes: object) -> None:
    """Changes what a life was told."""
    changed = replace(one.commits[place], **changes)  # type: ignore[arg-type]
    one.commits[place] = one.events[place] = changed


def fail(one: Life, place: int, error: str, *, restored: bool = True) -> None:
    """Lets a step fail that was committed before."""
    was = one.commits.pop(place)
    one.failures.append(Failure(was.at, was.step, error, restored, ""))
    one.events[place] = one.failures[-1]


def rules(*lives: Life) -> set[str]:
    return {violation.rule for violation in check(lives, min_world=2, count=COUNT)}


def test_a_sound_run_has_no_contradictions() -> None:
    assert rules(*world()) == set()


def swap_epochs(one: Life) -> None:
    told(one, 4, epoch=2)
    one.sights.clear()


def lose_a_step(one: Life) -> None:
    del one.commits[2], one.events[2]


PLANTED: dict[str, tuple[str, Callable[[Life], None]]] = {
    "another digest": ("agreement", lambda one: told(one, 1, digest="other")),
    "another epoch": ("agreement", lambda one: told(one, 1, epoch=3)),
    "another name": ("agreement", lambda one: told(one, 1, name="state")),
    "other contributors": ("agreement", lambda one: told(one, 1, contributors=(A, B, C))),
    "a step it has no part in": ("agreement", lambda one: told(one, 1, contributors=(A, C))),
    "too few": ("agreement", lambda one: told(one, 1, contributors=(B,))),
    "somebody twice": ("sums", lambda one: told(one, 1, contributors=(A, B, B))),
    "a wrong element": ("sums", lambda one: told(one, 1, wrong=1)),
    "a fallen epoch": ("monotony", swap_epochs),
    "a lost step": ("order", lose_a_step),
    "another state": ("parity", lambda one: told(one, 3, state="other")),
    "another lineage": ("parity", lambda one: told(one, 3, lineage=2)),
    "a failed step that others hold": ("agreement", lambda one: fail(one, 2, "StepFailed")),
    "an input that is gone": ("inputs", lambda one: fail(one, 4, "Evicted", restored=False)),
    "a view of others": ("views", lambda one: one.sights.append(Sight(9.0, 3, (A, B, C)))),
    "a view that goes back": ("monotony", lambda one: one.sights.append(Sight(9.0, 2, (A, B)))),
    "somebody who never began": ("incarnations", lambda one: one.invoked.pop(2) and None),
}


@pytest.mark.parametrize("name", PLANTED)
def test_every_kind_of_contradiction_is_found(name: str) -> None:
    rule, plant = PLANTED[name]
    one, other = world()
    plant(other)
    assert rule in rules(one, other)


def test_a_sum_that_all_agree_on_is_computed_again() -> None:
    lives = world()
    for one in lives:
        told(one, 2, digest=values.digest(values.expected_sum([bytes.fromhex(A)], 3, COUNT)))
    assert rules(*lives) == {"sums"}


def test_contributors_that_an_epoch_does_not_have_are_found() -> None:
    lives = (*world(), life(C, 1, 2, 3, 4, 5))
    for one in lives:
        for place in range(5):
            told(one, place, contributors=(A, B, C), digest=commit(place + 1, A, B, C).digest)
    assert rules(*lives) == {"views"}


def anew(*names: str) -> list[Life]:
    """Another lineage: other incarnations, step 1 again, later epochs."""
    made = [life(name, 1, 2, 3, 4, 5) for name in names]
    for one in made:
        one.sights.clear()
        for place in range(5):
            fresh = commit(place + 1, *names)
            told(one, place, contributors=names, digest=fresh.digest, epoch=10 + place, lineage=9)
    return made


def test_a_run_that_began_anew_may_count_its_steps_again() -> None:
    lives = [*world(), *anew(C, D)]
    assert not check(lives, min_world=2, count=COUNT, lineages_max=2)
    assert rules(*lives) == {"agreement"}  # nobody declared that


def test_two_groups_that_go_on_apart_are_found_even_if_a_second_beginning_was_declared() -> None:
    lives = [*world(), *anew(C, D)]
    for one in lives[2:]:
        for place in range(5):
            told(one, place, epoch=2)
    assert check(lives, min_world=2, count=COUNT, lineages_max=2)


def test_a_killed_process_is_held_to_what_it_was_told() -> None:
    one, killed = world()
    assert killed.end is None
    told(killed, 4, digest="what only it was told")
    assert rules(one, killed) == {"agreement"}


def test_who_was_excluded_comes_back_at_a_later_step() -> None:
    one, other = life(A, 1, 2, 3, 4, 5, 6, 7), life(B, 1, 2, 6, 7)
    for place, step in ((2, 3), (3, 4), (4, 5)):
        told(one, place, contributors=(A, C), digest=commit(step, A, C).digest)
    third = Life("third", C, 0.0)
    third.invoked = [(0.0, step) for step in (3, 4, 5)]
    one.sights.clear()
    other.sights.clear()
    other.events.insert(2, Failure(3.0, 3, "Excluded", True, ""))
    assert rules(one, other, third) == set()
    other.events.pop(2)
    assert rules(one, other, third) == {"order"}


def test_who_was_excluded_may_be_back_in_the_step_that_is_run_again() -> None:
    one, other = world()
    other.events.insert(2, Failure(2.9, 3, "Excluded", True, ""))
    assert rules(one, other) == set()
    other.events[2] = Failure(2.9, 4, "Excluded", True, "")
    assert rules(one, other) == {"order"}


def test_too_few_may_go_on_to_where_newcomers_wait_and_no_further() -> None:
    alone = life(A, 1, 2, 3)
    alone.sights.clear()
    for place in range(3):
        told(alone, place, contributors=(A,), digest=commit(place + 1, A).digest)
    told(alone, 1, name="state", digest="")
    texts = [violation.text for violation in check([alone], min_world=2, count=COUNT)]
    assert texts == ["step 1: fewer than 2", "step 3: fewer than 2"]


def test_an_outcome_that_is_open_gives_no_promise_about_the_buffer() -> None:
    one, other = world()
    fail(other, 4, "OutcomeUnknown", restored=False)
    assert rules(one, other) == set()


def test_a_violation_shows_the_records_that_contradict_each_other() -> None:
    one, other = world()
    told(other, 1, digest="other")
    (found,) = check([one, other], min_world=2, count=COUNT)
    assert "process of aa" in str(found) and "process of bb" in str(found)
    assert "digest='other'" in str(found)
