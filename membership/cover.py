"""Whom to give up so that no broken pair stays together: a minimum-weight vertex cover.

Theory: members are vertices, pairs that cannot reach each other are edges.  A set of members that
touches every edge (a cover) is what must leave for the others to be whole, and the cheapest one
blames least: who accuses k peers has k edges, each of them has one, so the accuser is the cover.

Exact up to EXACT_MAX vertices that have an edge, by branching: either the vertex of most edges is
in the cover, or all its neighbours are.  Above, greedy by edges per weight, then whoever is not
needed any more is let off again.

Invariant: the result touches every edge, holds nobody without an edge, and depends on nothing but
the edges and the weights; of equally cheap covers the one that spares older vertices is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

EXACT_MAX: Final = 20  # vertices; the search is below a millisecond up to here

_Graph = dict[int, set[int]]


def minimum_cover(edges: Iterable[tuple[int, int]], weights: Mapping[int, int]) -> frozenset[int]:
    """Returns the vertices to give up.

    Args:
        edges: pairs of vertices; order and repetition do not matter.
        weights: positive, of every vertex that has an edge.
    """
    graph: _Graph = {}
    for one, other in edges:
        assert one != other, "nobody is broken with itself"
        graph.setdefault(one, set()).add(other)
        graph.setdefault(other, set()).add(one)
    if len(graph) > EXACT_MAX:
        return _greedy(graph, weights)
    # A distinct power of two per vertex below the unit of weight makes every total different, and
    # the sums that leave out older (smaller) vertices the smaller ones.
    oldest_first = sorted(graph)
    unit = 1 << len(oldest_first)
    cost = {v: weights[v] * unit + (unit >> (n + 1)) for n, v in enumerate(oldest_first)}
    return _branch(graph, cost, None)[1]


def _branch(
    graph: _Graph, cost: Mapping[int, int], bound: int | None
) -> tuple[int | None, frozenset[int]]:
    """Returns the cheapest cover below `bound` and its cost, or (None, nothing)."""
    if bound is not None and bound <= 0:
        return None, frozenset()
    pivot = max(graph, key=lambda v: (len(graph[v]), v), default=None)
    if pivot is None or not graph[pivot]:
        return 0, frozenset()
    best: tuple[int | None, frozenset[int]] = (None, frozenset())
    for taken in ({pivot}, graph[pivot]):
        spent = sum(cost[v] for v in taken)
        left = None if bound is None else bound - spent
        total, cover = _branch(_without(graph, taken), cost, left)
        if total is not None and (bound is None or total + spent < bound):
            bound = total + spent
            best = (bound, cover | taken)
    return best


def _without(graph: _Graph, taken: set[int]) -> _Graph:
    return {v: near - taken for v, near in graph.items() if v not in taken}


def _greedy(graph: _Graph, weights: Mapping[int, int]) -> frozenset[int]:
    left = {v: set(near) for v, near in graph.items()}
    cover: list[int] = []
    while any(left.values()):
        taken = max(left, key=lambda v: (len(left[v]) / weights[v], v))
        cover.append(taken)
        left = _without(left, {taken})
    for vertex in sorted(cover, key=lambda v: (-weights[v], v)):
        if graph[vertex] <= set(cover) - {vertex}:
            cover.remove(vertex)
    return frozenset(cover)
