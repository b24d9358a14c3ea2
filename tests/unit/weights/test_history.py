"""What a publisher keeps, and the way from what a receiver has to the newest revision."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.base.errors import UsageError
from pccl.weights.frames import CHUNK_BYTES_MIN, Manifest, chunk_bytes_for
from pccl.weights.history import History, route
from pccl.weights.store import Store


def digest(number: int) -> bytes:
    return number.to_bytes(16, "little")


def manifest(update: int, revision: int, base: int | None, size: int = 100) -> Manifest:
    return Manifest(
        update=update,
        revision=revision,
        base=b"" if base is None else digest(base),
        digest=digest(revision),
        state_bytes=1000,
        byte_count=size,
        chunk_bytes=CHUNK_BYTES_MIN,
        chunk_digests=bytes(16),
    )


def anchor(revision: int, size: int = 1000) -> Manifest:
    return manifest(1000 + revision, revision, None, size)


def delta(revision: int, size: int = 10) -> Manifest:
    return manifest(revision, revision, revision - 1, size)


def published(revisions: int, *, anchor_every: int, budget: int = 0, size: int = 10) -> History:
    history = History(anchor_every=anchor_every, bytes_max=budget)
    history.append(None, anchor(1))
    for revision in range(2, revisions + 1):
        due = history.anchor_due(revision, size)
        history.append(delta(revision, size), anchor(revision) if due else None)
    return history


def numbers(way: object) -> list[int]:
    assert isinstance(way, list | tuple)
    return [m.update for m in way]


def test_an_anchor_is_due_after_so_many_revisions() -> None:
    history = published(8, anchor_every=3)
    assert history.newest == 8
    assert numbers(history.held) == [1007, 7, 8]


def test_an_anchor_is_due_when_the_deltas_since_have_outgrown_it() -> None:
    history = published(3, anchor_every=1000, size=400)
    assert numbers(history.held) == [1001, 2, 3]
    assert history.anchor_due(4, 400)
    assert not history.anchor_due(4, 200)


def test_deltas_from_before_the_anchor_are_kept_within_their_budget_the_newest_of_them() -> None:
    history = published(8, anchor_every=3, budget=35)
    assert numbers(history.held) == [1007, 5, 6, 7, 8]


def test_what_is_dropped_is_said_once() -> None:
    history = published(3, anchor_every=3)
    gone = history.append(delta(4), anchor(4))
    assert sorted(numbers(gone)) == [2, 1001]
    assert numbers(history.held) == [1004, 3, 4]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UsageError):
        History(anchor_every=0, bytes_max=1)


@settings(max_examples=100)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 100), st.integers(1, 600))
def test_everybody_can_be_served_at_every_moment(
    revisions: int, every: int, budget: int, size: int
) -> None:
    history = published(revisions, anchor_every=every, budget=budget, size=size)
    newcomers = route(history.held, None)
    assert newcomers is not None and newcomers[0].is_anchor
    for before, after in itertools.pairwise(newcomers):
        assert after.base == before.digest
    assert newcomers[-1].revision == revisions
    after_anchor = [m for m in history.held if not m.is_anchor]
    assert sum(m.byte_count for m in after_anchor) <= budget + 1000 + 2 * size


def test_who_is_behind_takes_deltas_and_who_is_too_far_behind_an_anchor() -> None:
    history = published(8, anchor_every=3, budget=25)
    assert numbers(route(history.held, digest(6))) == [7, 8]
    assert numbers(route(history.held, digest(2))) == [1007, 8]
    assert numbers(route(history.held, digest(8))) == []
    assert route((), digest(8)) is None


def test_a_long_chain_gives_way_to_an_anchor_that_is_smaller() -> None:
    held = [anchor(5, 100), *(delta(n, 60) for n in (4, 5, 6))]
    assert numbers(route(held, digest(3))) == [1005, 6]
    assert numbers(route(held, digest(3), lambda update: update in (4, 5))) == [4, 5, 6]


def test_a_state_that_comes_back_is_the_latest_of_its_kind() -> None:
    there = manifest(2, 2, 1)
    back = Manifest(3, 3, digest(2), digest(1), 1000, 10, CHUNK_BYTES_MIN, bytes(16))
    on = Manifest(4, 4, digest(1), digest(4), 1000, 10, CHUNK_BYTES_MIN, bytes(16))
    held = [anchor(1), there, back, on]
    assert numbers(route(held, digest(1))) == [4]
    assert numbers(route(held, digest(2))) == [3, 4]


def test_chunks_grow_with_the_update_so_that_their_digests_fit_one_manifest() -> None:
    assert chunk_bytes_for(1) == CHUNK_BYTES_MIN
    assert chunk_bytes_for(CHUNK_BYTES_MIN * 16_000 + 1) == 2 * CHUNK_BYTES_MIN
    for gib in (1, 4, 8, 16, 60):
        size = chunk_bytes_for(gib << 30)
        assert -(-(gib << 30) // size) <= 16_000


def fill(store: Store, m: Manifest) -> None:
    store.learn(m)
    store.begin(m).chunks = m.chunks


def test_a_receiver_fetches_what_is_missing_in_the_order_in_which_it_is_applied() -> None:
    store = Store()
    store.joined(b"L" * 16)
    for m in published(4, anchor_every=9).held:
        store.learn(m)
    first = store.next_to_fetch(None)
    assert first is not None and first.update == 1001
    store.begin(first).chunks = 1
    assert store.reached(None, 2) is None
    ready = store.reached(None, 1)
    assert ready is not None and ready.revision == 1
    second = store.next_to_fetch(None)
    assert second is not None and second.update == 2


def test_what_is_complete_and_needed_is_kept_though_the_publisher_has_dropped_it() -> None:
    store = Store()
    store.joined(b"L" * 16)
    for n in (2, 3):
        fill(store, delta(n))
    store.learn(anchor(3))
    store.dropped(2)
    ready = store.reached(digest(1), 3)
    assert ready is not None and [h.manifest.update for h in ready.holdings] == [2, 3]
    assert store.applied([2, 3], digest(3), 1000) == []
    assert store.find(2) is None and store.find(3) is not None


def test_applied_updates_are_kept_for_others_within_a_budget_the_newest_longest() -> None:
    store = Store()
    store.joined(b"L" * 16)
    for n in (2, 3, 4):
        fill(store, delta(n))
    assert store.applied([2, 3, 4], digest(4), 20) == [2]
    assert store.find(2) is None and store.find(3) is not None


def test_another_publisher_s_updates_are_others_though_their_numbers_are_the_same() -> None:
    store = Store()
    store.joined(b"L" * 16)
    fill(store, delta(2))
    holding = store.find(2)
    assert store.joined(b"L" * 16) == [2]
    assert store.joined(b"M" * 16) == []
    assert store.find(2) is None and holding is not None and holding.released
    assert (store.newest, store.next_to_fetch(digest(1))) == (0, None)
