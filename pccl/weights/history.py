"""Which updates a publisher keeps, and by which of them a receiver gets to the newest.  Pure.

Kept are one anchor and every delta after it, so that anybody can be served, and before it as many
deltas as fit a budget, so that who is a little behind needs no anchor.  A new anchor is due after
`anchor_every` revisions, and when the deltas after the last one have grown larger than itself.

Invariant: the deltas kept are consecutive and end at the newest revision; the anchor is at or
after the base of the first, and at or before the newest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from pccl.base.errors import UsageError
from pccl.weights.frames import Manifest

DELTAS_MIN: Final = 2  # whoever keeps up needs no anchor, however small the budget


class History:
    """The updates of one publisher, by their manifests."""

    def __init__(self, *, anchor_every: int, bytes_max: int) -> None:
        """
        Args:
            anchor_every: revisions from one anchor to the next, 1 or more.
            bytes_max: of deltas from before the anchor; those after it are bounded by its size.
        """
        if anchor_every < 1 or bytes_max < 0:
            raise UsageError("anchor_every must be at least 1, the budget not negative")
        self._anchor_every = anchor_every
        self._bytes_max = bytes_max
        self._anchor: Manifest | None = None
        self._deltas: list[Manifest] = []

    @property
    def newest(self) -> int:
        """The newest revision; 0 while there is none."""
        last = self._deltas[-1] if self._deltas else None
        return max((m.revision for m in (self._anchor, last) if m is not None), default=0)

    @property
    def held(self) -> tuple[Manifest, ...]:
        """Everything that is kept: the anchor, and the deltas in order."""
        return (*([self._anchor] if self._anchor else []), *self._deltas)

    def anchor_due(self, revision: int, delta_bytes: int) -> bool:
        """Says whether the next revision, by a delta of so many bytes, should have an anchor."""
        anchor = self._anchor
        if anchor is None:
            return True
        after = [m for m in self._deltas if m.revision > anchor.revision]
        grown = sum(m.byte_count for m in after) + delta_bytes
        return len(after) + 1 >= self._anchor_every or grown > anchor.byte_count

    def append(self, delta: Manifest | None, anchor: Manifest | None) -> list[Manifest]:
        """Takes one revision: by a delta, by an anchor, or by both.  Returns what is dropped."""
        before = self.held
        if delta is None:  # the first one, or a break: nothing leads to it
            assert anchor is not None
            self._deltas = []
        else:
            assert delta.revision > self.newest
            self._deltas.append(delta)
        if anchor is not None:
            assert anchor.revision == (delta or anchor).revision
            self._anchor = anchor
        self._trim()
        kept = {m.update for m in self.held}
        return [m for m in before if m.update not in kept]

    def _trim(self) -> None:
        assert self._anchor is not None
        at = self._anchor.revision
        early = [m for m in self._deltas if m.revision <= at]
        late = self._deltas[len(early) :]
        while sum(m.byte_count for m in early) > self._bytes_max:
            if len(early) + len(late) <= DELTAS_MIN:
                break
            early.pop(0)
        self._deltas = early + late


def route(
    held: Iterable[Manifest], base: bytes | None, have: Callable[[int], bool] = lambda update: False
) -> Sequence[Manifest] | None:
    """Returns the updates that lead to the newest revision, the cheapest way.

    Args:
        held: what the publisher serves, in any order.
        base: digest of the state to begin with; None or unknown: only an anchor helps.
        have: says of an update (its number) whether its bytes are here already.

    Returns:
        Updates in the order to apply; () if the base is the newest; None if nothing is served.
    """
    known = list(held)
    deltas = sorted((m for m in known if not m.is_anchor), key=lambda m: m.revision)
    anchors = [m for m in known if m.is_anchor]
    if not known:
        return None
    newest = max(known, key=lambda m: m.revision)
    if base == newest.digest:
        return ()
    ways = [chain for chain in (_chain(deltas, base, newest),) if chain is not None]
    for anchor in anchors:
        rest = [m for m in deltas if m.revision > anchor.revision]
        chain = _chain(rest, anchor.digest, newest)
        if chain is not None:
            ways.append([anchor, *chain])
    if not ways:
        return None
    return min(ways, key=lambda way: sum(m.byte_count for m in way if not have(m.update)))


def _chain(deltas: Sequence[Manifest], base: bytes | None, end: Manifest) -> list[Manifest] | None:
    """The deltas from a base to the end; None if they do not reach from one to the other."""
    if base == end.digest:
        return []
    for start in range(len(deltas) - 1, -1, -1):  # the latest, should a state have come back
        if deltas[start].base == base:
            chain = list(deltas[start:])
            joined = all(a.digest == b.base for a, b in itertools.pairwise(chain))
            return chain if joined and chain[-1].digest == end.digest else None
    return None
