"""What the nemesis may do, and that its schedule is its seed."""

from __future__ import annotations

import random
from dataclasses import replace

from tests.churn.nemesis import BRIEF_S, WEIGHTS, Event, Situation, choose

ALL_WELL = Situation(
    healthy=6,
    present=6,
    ready=2,
    least=3,
    most=8,
    min_world=2,
    link_kinds=frozenset({"cut", "reset", "loss", "delay"}),
    freezer=True,
    coordinator_up=True,
)
DRAWS = 3000


def drawn(now: Situation, seed: int = 1) -> list[Event]:
    dice = random.Random(seed)
    events = [choose(dice, now) for _ in range(DRAWS)]
    return [event for event in events if event is not None]


def test_the_same_seed_draws_the_same_events() -> None:
    assert drawn(ALL_WELL, 5) == drawn(ALL_WELL, 5) != drawn(ALL_WELL, 6)


def test_every_kind_comes_about_as_often_as_its_weight_says() -> None:
    kinds = [event.kind for event in drawn(ALL_WELL)]
    for kind, weight in WEIGHTS.items():
        share = kinds.count(kind) / len(kinds)
        assert abs(share - weight / sum(WEIGHTS.values())) < 0.03, kind


def test_bursts_kill_one_half_or_all_but_one() -> None:
    bursts = {event.victims for event in drawn(ALL_WELL) if event.kind == "burst"}
    assert bursts == {1, 3, 5}


def test_two_healthy_members_are_left_alone_but_for_moments_and_bursts() -> None:
    for event in drawn(replace(ALL_WELL, healthy=2)):
        harmless = event.kind in ("join", "burst") or event.kind.startswith("coordinator")
        assert harmless or event.duration_s <= BRIEF_S, event
        assert event.kind not in ("kill", "leave")


def test_a_full_world_is_joined_by_nobody() -> None:
    assert all(event.kind != "join" for event in drawn(replace(ALL_WELL, present=8)))
    assert all(event.kind != "join" for event in drawn(replace(ALL_WELL, ready=0)))


def test_nothing_is_drawn_that_cannot_be_done_here() -> None:
    kinds = {event.kind for event in drawn(replace(ALL_WELL, link_kinds=frozenset()))}
    assert kinds.isdisjoint({"cut", "cut-coordinator", "unplug", "reset", "loss", "delay"})
    assert all(event.kind != "freeze" for event in drawn(replace(ALL_WELL, freezer=False)))


def test_a_coordinator_that_is_down_is_let_alone() -> None:
    kinds = {event.kind for event in drawn(replace(ALL_WELL, coordinator_up=False))}
    assert not any(kind.startswith("coordinator") for kind in kinds)
