"""Who fetches from whom: two from the publisher, the rest from each other, whoever dies."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.weights.frames import ROOT, Trouble
from pccl.weights.tree import Tree


def name(number: int) -> bytes:
    return bytes([number]) * 16


def grown(count: int, fan_out: int = 2) -> Tree:
    tree = Tree(fan_out)
    for number in range(1, count + 1):
        tree.assign(name(number))
    return tree


def depth(tree: Tree, receiver: bytes) -> int:
    steps = 1
    while (receiver := tree.source_of(receiver)) != ROOT:
        steps += 1
        assert steps < 1000, "sources go around in a circle"
    return steps


@pytest.mark.parametrize(("count", "levels"), [(1, 1), (2, 1), (3, 2), (6, 2), (14, 3), (200, 7)])
def test_the_publisher_sends_twice_whatever_the_number_of_receivers(
    count: int, levels: int
) -> None:
    tree = grown(count)
    sources = [tree.source_of(name(n)) for n in range(1, count + 1)]
    assert sources.count(ROOT) == min(2, count)
    assert all(sources.count(source) <= 2 for source in sources)
    assert max(depth(tree, name(n)) for n in range(1, count + 1)) == levels


def test_who_comes_when_others_are_done_fetches_from_them_and_not_from_the_publisher() -> None:
    tree = grown(2)
    tree.completed(name(1))
    tree.completed(name(2))
    for late in range(3, 30):
        assert tree.assign(name(late)) != ROOT
        tree.completed(name(late))


def test_those_below_a_silent_holder_go_elsewhere_and_nobody_new_comes_to_it() -> None:
    tree = grown(6)
    orphans = [n for n in range(3, 7) if tree.source_of(name(n)) == name(1)]
    assert len(orphans) == 2
    for n in orphans:
        found = tree.assign(name(n), blamed=name(1), trouble=Trouble.SILENT)
        assert found not in (name(1), name(n))
    assert all(tree.assign(name(n)) != name(1) for n in range(7, 12))
    assert all(depth(tree, name(n)) for n in range(2, 12))
    tree.heard(name(1))
    assert tree.assign(name(12)) == name(1)


def test_one_that_nobody_reaches_twice_gets_nobody_even_if_the_publisher_hears_it() -> None:
    tree = grown(3)
    assert tree.source_of(name(3)) == name(1)
    tree.assign(name(3), blamed=name(1), trouble=Trouble.LOST)
    tree.heard(name(1))
    tree.assign(name(3), blamed=name(1), trouble=Trouble.LOST)
    tree.heard(name(1))
    for n in range(4, 20):
        assert tree.assign(name(n)) != name(1)


def test_one_that_gave_wrong_bytes_gives_nobody_any_more() -> None:
    tree = grown(4)
    liar = tree.source_of(name(3))
    tree.assign(name(3), blamed=liar, trouble=Trouble.CORRUPT)
    tree.heard(liar)
    assert tree.liars == {liar}
    assert all(tree.assign(name(n)) != liar for n in range(5, 20))


def test_when_the_publisher_s_own_child_leaves_its_place_is_given_again() -> None:
    tree = grown(2)
    tree.left(name(1))
    assert name(1) not in tree
    assert tree.assign(name(3)) == ROOT
    assert tree.assign(name(4)) == name(2)


def test_what_was_released_is_fetched_from_those_that_still_hold_it() -> None:
    tree = grown(2)
    for n in (1, 2):
        tree.completed(name(n))
    tree.released(name(1))
    assert tree.assign(name(3)) == name(2)
    tree.assign(name(3), blamed=name(2), trouble=Trouble.GONE)
    assert tree.source_of(name(3)) == ROOT, "nobody else is left"


def test_one_that_others_cannot_reach_is_never_a_source() -> None:
    tree = Tree()
    tree.assign(name(1), gives=False)
    tree.assign(name(2), gives=False)
    assert tree.assign(name(3)) == ROOT, "there is nobody else"


def test_one_that_comes_back_with_everything_gives_it_away_again() -> None:
    tree = grown(2)
    for n in (1, 2):
        tree.completed(name(n))
    tree.left(name(1))
    tree.completed(name(1))
    assert {tree.assign(name(n)) for n in range(3, 7)} == {name(1), name(2)}


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["assign", "silent", "lost", "corrupt", "gone", "done", "left", "heard"]),
        st.integers(1, 12),
        st.integers(0, 12),
    ),
    max_size=80,
)
TROUBLE = {
    "silent": Trouble.SILENT,
    "lost": Trouble.LOST,
    "corrupt": Trouble.CORRUPT,
    "gone": Trouble.GONE,
}


@settings(max_examples=400, deadline=None)
@given(ACTIONS, st.integers(1, 3))
def test_sources_lead_to_the_publisher_whatever_is_said_of_whom(
    actions: list[tuple[str, int, int]], fan_out: int
) -> None:
    tree, done = Tree(fan_out), set()
    for what, number, blamed in actions:
        receiver = name(number)
        match what:
            case "assign":
                tree.assign(receiver)
                done.discard(receiver)
            case "done" if receiver in tree:
                tree.completed(receiver)
                done.add(receiver)
            case "left":
                tree.left(receiver)
                done.discard(receiver)
            case "heard":
                tree.heard(receiver)
            case word if word in TROUBLE:
                culprit = name(blamed) if blamed else ROOT
                found = tree.assign(receiver, blamed=culprit, trouble=TROUBLE[word])
                done.discard(receiver)
                assert found == ROOT or found != culprit
                assert found not in tree.liars
        fetching = [name(n) for n in range(1, 13) if name(n) in tree and name(n) not in done]
        for receiver in fetching:
            at, seen = receiver, set()
            while at != ROOT and at not in done:
                assert at in tree and at not in seen
                seen.add(at)
                at = tree.source_of(at)
        for holder in map(name, range(1, 13)):
            assert sum(tree.source_of(r) == holder for r in fetching) <= fan_out
