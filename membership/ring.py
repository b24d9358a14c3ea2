"""Ring orders that keep some pairs from being neighbours.

In a ring each member sends to the next only, so a link that cannot be trusted is not needed if its
ends are no neighbours.  Pure functions; deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

Pairs = AbstractSet[tuple[int, int]]


def keep_apart(order: Sequence[int], apart: Pairs) -> tuple[int, ...]:
    """Returns the order with as many of these pairs no longer neighbours as swaps can do.

    Args:
        order: who follows whom; the last is followed by the first.
        apart: pairs, the smaller number first.

    Cost: O(n²) per pair that is parted.
    """
    best = list(order)
    while _neighbours(best, apart):
        better = _improved(best, apart)
        if better is None:
            break
        best = better
    return tuple(best)


def _improved(order: list[int], apart: Pairs) -> list[int] | None:
    """Returns the first order, one swap away, in which fewer pairs are neighbours."""
    count = _neighbours(order, apart)
    for at, one in enumerate(order):
        after = order[(at + 1) % len(order)]
        if (min(one, after), max(one, after)) not in apart:
            continue
        for other in range(len(order)):
            swapped = list(order)
            swapped[at], swapped[other] = swapped[other], swapped[at]
            if _neighbours(swapped, apart) < count:
                return swapped
    return None


def _neighbours(order: Sequence[int], apart: Pairs) -> int:
    pairs = zip(order, (*order[1:], *order[:1]), strict=True)
    return sum((min(a, b), max(a, b)) in apart for a, b in pairs)
