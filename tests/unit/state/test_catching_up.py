"""When a newcomer may ask to come in, and what it says if it may not."""

from __future__ import annotations

from typing import Any

import pytest

from pccl.state.catching_up import CatchingUp

MB = 1_000_000


def test_a_state_that_fits_as_a_whole_needs_no_second_round() -> None:
    newcomer = CatchingUp(100 * MB, pace=0.2, hold_s=1.0)
    assert not newcomer.fits, "nothing is known yet"
    newcomer.round(7, 100 * MB, took_s=2.0)  # 50 MB/s in a fifth of the time: 250 MB/s at the entry
    assert newcomer.fits
    assert newcomer.progress().needed_bytes_per_s == 200 * MB


def test_what_changes_during_a_round_is_what_will_be_left() -> None:
    newcomer = CatchingUp(1000 * MB, pace=0.2, hold_s=1.0)
    newcomer.round(7, 1000 * MB, took_s=20.0)
    assert not newcomer.fits, "all of it may differ again"
    newcomer.round(9, 100 * MB, took_s=2.0)
    assert newcomer.fits and newcomer.progress().rest_bytes == 100 * MB


def test_what_cannot_come_in_is_said_with_the_pace_that_would_do() -> None:
    newcomer = CatchingUp(1000 * MB, pace=0.5, hold_s=2.0)
    for revision in (3, 8):
        newcomer.round(revision, 1000 * MB, took_s=10.0)
    assert not newcomer.fits and newcomer.to_be_said
    found = newcomer.progress()
    assert (found.rounds, found.revision, found.entries) == (2, 8, 0)
    assert (found.pace_bytes_per_s, found.needed_bytes_per_s) == (200 * MB, 1000 * MB)
    for part in ("after 5 revisions", "200 MB/s", "1e+03 MB/s", "hold_s=10"):
        assert part in newcomer.why(), newcomer.why()


def test_an_entry_that_was_in_vain_is_tried_again_only_as_the_ways_may_have_got_better() -> None:
    newcomer = CatchingUp(100 * MB, pace=0.1, hold_s=1.0)
    newcomer.round(1, 100 * MB, took_s=2.0)
    assert newcomer.fits
    newcomer.entry(60 * MB, took_s=1.0)
    assert not newcomer.fits
    newcomer.round(2, 100 * MB, took_s=2.0)
    assert not newcomer.fits, "twice 60 is not 200"
    newcomer.round(3, 100 * MB, took_s=2.0)
    assert newcomer.fits
    newcomer.round(4, 100 * MB, took_s=20.0)
    assert not newcomer.fits, "rounds are slow by now"


def test_where_steps_bring_much_members_wait_for_as_much_at_the_way_s_own_pace() -> None:
    newcomer = CatchingUp(200 * MB, pace=0.5, hold_s=1.0, hold_bytes=100 * MB)
    assert newcomer.hold_s == 1.0, "no pace is known"
    newcomer.round(1, 200 * MB, took_s=40.0)  # 10 MB/s at the entry
    assert newcomer.hold_s == 20.0
    assert not newcomer.fits, "all of it may differ, twice what a step brings"
    newcomer.round(2, 100 * MB, took_s=20.0)
    assert newcomer.fits
    newcomer.entry(20 * MB, took_s=20.0)
    assert newcomer.hold_s == 20.0, "the others do not wait longer for who was too slow"
    newcomer.round(3, 100, took_s=1.0)
    assert newcomer.hold_s == 20.0, "a few bytes say nothing of the way"


def test_the_default_hold_leaves_time_to_hash_a_large_state() -> None:
    newcomer = CatchingUp(100 * MB, pace=0.2, hold_s=None, replays=True)
    assert newcomer.hold_s == 1.0
    newcomer.hashed(3.0)
    assert newcomer.hold_s == 13.0
    newcomer.hashed(30.0)
    assert newcomer.hold_s == 60.0
    strict = CatchingUp(100 * MB, pace=0.2, hold_s=1.0, replays=True)
    strict.hashed(3.0)
    assert strict.hold_s == 1.0


def test_what_is_measured_makes_nobody_wait_longer_than_the_limit_that_was_given() -> None:
    named: dict[str, Any] = {"pace": 0.5, "hold_s": None, "hold_bytes": 100 * MB}
    newcomer = CatchingUp(200 * MB, **named)
    newcomer.round(1, 200 * MB, took_s=400.0)  # 1 MB/s: what a step brings takes 100 s
    assert newcomer.hold_s == 60.0, "a minute, unless another limit is given"
    limited = CatchingUp(200 * MB, **named, hold_s_max=5.0)
    limited.round(1, 200 * MB, took_s=400.0)
    assert limited.hold_s == 5.0
    limited.hashed(3.0)
    assert limited.hold_s == 5.0, "13 s for hashing are more than that, too"
    brief = CatchingUp(200 * MB, **named, hold_s_max=0.25)
    assert brief.hold_s == 0.25
    given = CatchingUp(200 * MB, pace=0.5, hold_s=90.0, hold_s_max=5.0)
    assert given.hold_s == 90.0, "what a program says itself is not limited"


def replaying(**named: Any) -> CatchingUp:
    """A newcomer that lacks nothing now, and replays what comes; hashing takes a tenth."""
    newcomer = CatchingUp(100 * MB, pace=0.5, hold_s=1.0, replays=True, **named)
    newcomer.hashed(0.1)
    newcomer.round(10, 100 * MB, took_s=2.0)
    newcomer.round(12, 100 * MB, took_s=2.0)
    return newcomer


def test_replaying_costs_what_apply_takes_and_what_comes_at_the_donors_full_pace() -> None:
    newcomer = replaying()
    newcomer.replayed(4, 40 * MB, took_s=2.4, apply_s=0.4)  # 2 s to come, half of them a pause
    newcomer.members_hold(12, 100.0)
    newcomer.members_hold(16, 102.0)  # two revisions a second
    found = newcomer.progress()
    assert found.rest_bytes == 10 * MB, "what members make in half a second"
    assert found.pace_bytes_per_s == pytest.approx(40 * MB / 1.4)
    assert found.needed_bytes_per_s == pytest.approx(2 * 10 * MB / 0.9), (
        "twice, in what hashing leaves"
    )
    assert newcomer.fits, "twice 0.35 s and a tenth for hashing"
    newcomer.members_hold(22, 103.5)  # four a second
    assert not newcomer.fits
    for part in ("4 revisions a second", "each takes 0.35 s", "hashing takes 0.1 s", "hold_s=1.5"):
        assert part in newcomer.why(), newcomer.why()


def test_who_is_behind_when_a_replay_ends_may_not_enter_by_replaying() -> None:
    newcomer = replaying()
    newcomer.replayed(4, 4 * MB, took_s=0.4, apply_s=0.4, behind=True)
    assert newcomer.behind and not newcomer.fits
    newcomer.replayed(1, 1 * MB, took_s=0.1, apply_s=0.1)
    assert newcomer.fits


def test_an_entry_that_was_too_much_to_replay_counts_half_as_much_after_each_replay() -> None:
    newcomer = replaying()
    newcomer.replayed(10, 10 * MB, took_s=0.5, apply_s=0.5)  # 0.05 s each
    assert newcomer.fits, "members make nothing, as far as is known"
    newcomer.entry(0, took_s=1.0, backlog=40)
    assert not newcomer.fits and newcomer.progress().rest_bytes == 40 * MB
    newcomer.replayed(10, 10 * MB, took_s=0.5, apply_s=0.5)
    assert not newcomer.fits, "20 are 1 s, twice that is more than there is"
    for _ in range(2):
        newcomer.replayed(10, 10 * MB, took_s=0.5, apply_s=0.5)
    assert newcomer.fits, "5 are a quarter of a second"


def test_few_revisions_are_replayed_and_many_are_fetched() -> None:
    newcomer = replaying()
    newcomer.replayed(10, 10 * MB, took_s=0.5, apply_s=0.5)
    # 100 MB may differ, which come at 100 MB/s when nothing is paced: a second.
    assert newcomer.replays_sooner(17) and not newcomer.replays_sooner(19)
    assert CatchingUp(100 * MB, pace=0.5, hold_s=1.0).replays_sooner(9), "nothing is known"
