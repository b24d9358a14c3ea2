"""Tells lineages apart: a run all of whose members died begins anew, with step 0.

An incarnation belongs to one lineage, and every view of a lineage shares a member with the one
before.  So lives that were in a view or a step together are of one lineage, and so are those that
are linked by a chain of such.  That alone would also take two halves of a split run for two
lineages; hence the two further demands: the epochs of lineages do not overlap, and there are no
more of them than the coordinator declared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from tests.churn.records import Life


def lineages(lives: Iterable[Life]) -> list[list[Life]]:
    """Returns the lives of each lineage, in the order of their epochs; lives without a commit are
    in none."""
    above: dict[str, str] = {}

    def top(peer: str) -> str:
        while (higher := above.setdefault(peer, peer)) != peer:
            above[peer] = above[higher]  # so that the next way is shorter
            peer = higher
        return peer

    acting = [life for life in lives if life.commits]
    for life in acting:
        groups = {commit.contributors for commit in life.commits}
        groups |= {sight.members for sight in life.sights}
        for group in groups:
            for peer in group:
                above[top(peer)] = top(life.peer)
    found: dict[str, list[Life]] = defaultdict(list)
    for life in acting:
        found[top(life.peer)].append(life)
    return sorted(found.values(), key=lambda lives: epochs(lives)[0])


def epochs(lives: Iterable[Life]) -> tuple[int, int]:
    """The first and the last epoch in which something was committed."""
    seen = {commit.epoch for life in lives for commit in life.commits}
    return min(seen), max(seen)
