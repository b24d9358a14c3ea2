"""Who is given up when pairs cannot reach each other: laws, against trying every subset."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.membership.cover import EXACT_MAX, minimum_cover

Edges = list[tuple[int, int]]


def pairs(vertices: int) -> st.SearchStrategy[Edges]:
    every = list(combinations(range(vertices), 2))
    return st.lists(st.sampled_from(every), max_size=len(every))


def covers(edges: Edges, chosen: frozenset[int]) -> bool:
    return all(a in chosen or b in chosen for a, b in edges)


def cheapest_by_trying(edges: Edges, weights: dict[int, int]) -> int:
    vertices = {v for edge in edges for v in edge}
    return min(
        sum(weights[v] for v in chosen)
        for size in range(len(vertices) + 1)
        for chosen in combinations(vertices, size)
        if covers(edges, frozenset(chosen))
    )


@settings(deadline=None)
@given(pairs(8), st.lists(st.integers(1, 9), min_size=8, max_size=8))
def test_no_cover_is_cheaper_than_the_one_returned(edges: Edges, drawn: list[int]) -> None:
    weights = dict(enumerate(drawn))
    chosen = minimum_cover(edges, weights)
    assert covers(edges, chosen)
    assert sum(weights[v] for v in chosen) == cheapest_by_trying(edges, weights)


@settings(max_examples=30, deadline=None)
@given(pairs(EXACT_MAX), st.lists(st.integers(20, 39), min_size=EXACT_MAX, max_size=EXACT_MAX))
def test_a_cover_of_twenty_takes_nobody_who_could_stay(edges: Edges, drawn: list[int]) -> None:
    chosen = minimum_cover(edges, dict(enumerate(drawn)))
    assert covers(edges, chosen)
    assert not any(covers(edges, chosen - {v}) for v in chosen)


@settings(max_examples=30, deadline=None)
@given(pairs(40))
def test_a_cover_of_many_is_valid_and_has_no_needless_vertex(edges: Edges) -> None:
    chosen = minimum_cover(edges, {v: 40 + v for v in range(40)})
    assert covers(edges, chosen)
    assert not any(covers(edges, chosen - {v}) for v in chosen)


@settings(deadline=None)
@given(pairs(8))
def test_the_order_in_which_pairs_are_told_changes_nothing(edges: Edges) -> None:
    weights = dict.fromkeys(range(8), 3)
    turned = [(b, a) for a, b in reversed(edges)]
    assert minimum_cover(edges, weights) == minimum_cover(turned + edges, weights)


def test_who_accuses_many_is_the_one_to_go_whatever_its_standing() -> None:
    weights = {v: 10 + (9 - v) for v in range(10)}  # as links.py gives them: 0 stands longest
    for accuser in range(10):
        edges = [(accuser, other) for other in range(10) if other != accuser][:2]
        assert minimum_cover(edges, weights) == {accuser}


def test_of_two_the_one_that_came_later_goes() -> None:
    assert minimum_cover([(3, 7)], {3: 5, 7: 5}) == {7}
    assert minimum_cover([(3, 7)], {3: 4, 7: 5}) == {3}


def test_nothing_broken_costs_nobody() -> None:
    assert minimum_cover([], {}) == frozenset()
