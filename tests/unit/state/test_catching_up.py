"""When a newcomer may ask to come in, and what it says if it may not."""

from __future__ import annotations

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
