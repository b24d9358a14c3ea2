"""The planner of a fetch, driven by sources that die, lie and dawdle as Hypothesis likes."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from pccl.state.fetch import STRIKES_MAX, Fetching, pause_before, stall_after

A, B, C = b"aaaa", b"bbbb", b"cccc"
MIB = 1 << 20


def serve(fetching: Fetching, key: bytes, wrong: bool = False) -> list[int]:
    """One round of a source: asked, and all of it delivered.  Returns what was to be written."""
    written = []
    for leaf in fetching.ask(key):
        if fetching.arrived(key, leaf, right=not wrong):
            written.append(leaf)
            fetching.written()
    return written


def finish(fetching: Fetching, *keys: bytes) -> list[int]:
    """Serves until all is there.  Returns what was to be written."""
    written: list[int] = []
    for _ in range(1000):
        if fetching.done:
            return written
        more = [leaf for key in keys for leaf in serve(fetching, key)]
        assert more, "nobody is asked for what is missing"
        written += more
    raise AssertionError("it does not end")


def test_each_piece_is_written_once_whoever_brings_it() -> None:
    fetching = Fetching(range(50), [MIB] * 50, [A, B])
    written = finish(fetching, A, B)
    assert sorted(written) == list(range(50))
    assert abs(fetching.sources[A].byte_count - fetching.sources[B].byte_count) <= 4 * MIB


def test_nothing_is_done_before_it_is_in_memory() -> None:
    fetching = Fetching([0], [MIB], [A])
    assert fetching.ask(A) == [0] and fetching.arrived(A, 0, right=True)
    assert not fetching.done and fetching.hopeless is None
    fetching.written()
    assert fetching.done


def test_a_wrong_piece_is_asked_of_another_and_three_exclude_their_source() -> None:
    fetching = Fetching(range(8), [MIB] * 8, [A, B])
    assert serve(fetching, A, wrong=True) == []
    assert fetching.sources[A].excluded and fetching.sources[A].strikes >= STRIKES_MAX
    assert fetching.ask(A) == []
    written = finish(fetching, B)
    assert sorted(written) == list(range(8))


def test_what_a_lost_source_owes_is_asked_of_the_others() -> None:
    fetching = Fetching(range(6), [MIB] * 6, [A, B])
    owed = fetching.ask(A)
    assert owed
    fetching.lose(A, "is gone")
    written = finish(fetching, B)
    assert sorted(written) == list(range(6))
    assert not fetching.arrived(A, owed[0], right=True), "too late, and written already"


def test_at_the_end_an_idle_source_takes_over_from_a_slow_one() -> None:
    fetching = Fetching(range(4), [MIB] * 4, [A, B])
    owed = fetching.ask(A)
    assert len(owed) == 4
    written = finish(fetching, B)
    assert sorted(written) == list(range(4))


def test_without_sources_it_is_hopeless_and_says_why() -> None:
    fetching = Fetching(range(3), [MIB] * 3, [A, B])
    fetching.lose(A, "is gone (reset)")
    assert fetching.hopeless is None
    fetching.ask(B)
    fetching.lose(B, "moved nothing for 1 s")
    assert fetching.hopeless is not None
    assert "is gone (reset)" in fetching.hopeless and "moved nothing" in fetching.hopeless
    assert fetching.missing == [0, 1, 2]


def test_a_piece_that_every_source_has_sent_wrongly_is_hopeless() -> None:
    fetching = Fetching([0], [MIB], [A, B])
    for key in (A, B):
        assert fetching.hopeless is None
        serve(fetching, key, wrong=True)
    assert fetching.hopeless is not None and "leaf 0" in fetching.hopeless


@given(st.randoms(use_true_random=False), st.lists(st.integers(1, 3 * MIB), max_size=60))
def test_whatever_happens_every_piece_comes_or_it_is_known_that_it_cannot(
    dice: Random, sizes: list[int]
) -> None:
    fetching = Fetching(range(len(sizes)), sizes, [A, B, C])
    under_way: dict[bytes, list[int]] = {A: [], B: [], C: []}
    sent_wrongly: set[tuple[bytes, int]] = set()
    written: list[int] = []
    lost: set[bytes] = set()
    for _ in range(10_000):
        if fetching.done or fetching.hopeless:
            break
        key = dice.choice([A, B, C])
        what = dice.randrange(30)
        if what == 0 and len(lost) < 2:
            lost.add(key)
            fetching.lose(key, "died")
            under_way[key].clear()
        elif under_way[key]:
            leaf = under_way[key].pop(0)
            right = what != 1
            if not right:
                sent_wrongly.add((key, leaf))
            if fetching.arrived(key, leaf, right):
                assert leaf not in written and right
                written.append(leaf)
                fetching.written()
            if fetching.sources[key].excluded:
                under_way[key].clear()
        else:
            asked = fetching.ask(key)
            assert not (asked and (key in lost or fetching.sources[key].excluded))
            assert not any((key, leaf) in sent_wrongly for leaf in asked)
            under_way[key] = asked
    assert fetching.done or fetching.hopeless
    assert fetching.done == (sorted(written) == list(range(len(sizes))))


def test_after_a_fetch_in_vain_a_source_may_be_slower() -> None:
    assert [stall_after(failures, 60.0) for failures in range(3)] == [1.0, 4.0, 16.0]


def test_who_is_refused_at_once_waits_as_long_as_for_one_that_is_silent() -> None:
    assert [pause_before(failures, 0.0, 60.0) for failures in range(3)] == [0.0, 1.0, 4.0]
    assert pause_before(2, 1.5, 60.0) == 2.5 and pause_before(2, 9.0, 60.0) == 0.0
    assert pause_before(2, 0.0, 3.0) == 1.5, "half of what there is for this fetch"


def test_a_fetch_in_vain_leaves_time_to_ask_somebody_else() -> None:
    left_s, waited = 10.0, []
    for failures in range(3):
        waited.append(stall_after(failures, left_s / (3 - failures)))
        left_s -= waited[-1]
    assert waited == [1.0, 2.25, 3.375] and left_s > 3
    assert stall_after(0, 0.0) == 0.25, "a way and back takes a while"
