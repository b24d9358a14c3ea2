"""What a receiver knows of and holds of its publisher's updates, and what to fetch next.

It waits for nothing and sends nothing.  Invariant: an update that is complete and needed to get
from the program's state to the newest revision is never let go, also when the publisher serves it
no longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pccl.weights.frames import Manifest
from pccl.weights.history import route
from pccl.weights.holding import Holding


@dataclass(frozen=True, slots=True)
class Ready:
    """What leads from a base to a revision, all here."""

    lineage: bytes
    revision: int
    holdings: tuple[Holding, ...]
    base_known: bool  # whether the base is a state that the publisher has published and remembers


class Store:
    """The updates of one publisher after the other; belongs to one event loop."""

    def __init__(self) -> None:
        self.lineage = b""  # of the publisher; empty until it has answered
        self.newest = 0
        self._manifests: dict[int, Manifest] = {}
        self._holdings: dict[int, Holding] = {}  # in the order in which they were last needed
        self._stale: set[int] = set()  # complete here, and served by the publisher no more

    def joined(self, lineage: bytes) -> list[int]:
        """The publisher has answered; returns the updates that are complete here.

        One of another lineage means other updates by the same numbers: all are forgotten.
        """
        if lineage != self.lineage:
            self.forget(list(self._holdings))
            self._manifests.clear()
            self._stale.clear()
            self.lineage, self.newest = lineage, 0
        return [number for number in self._holdings if self.complete(number)]

    def learn(self, manifest: Manifest) -> None:
        self._manifests.setdefault(manifest.update, manifest)
        self.newest = max(self.newest, manifest.revision)

    def dropped(self, number: int) -> None:
        """The publisher serves it no more: what is not complete will never be."""
        if self.complete(number):
            self._stale.add(number)
        else:
            self.forget([number])
            self._manifests.pop(number, None)

    def largest_state_bytes(self) -> int:
        return max((m.state_bytes for m in self._manifests.values()), default=0)

    def find(self, number: int) -> Holding | None:
        return self._holdings.get(number)

    def begin(self, manifest: Manifest) -> Holding:
        """Returns what there is of an update; memory for it is allocated at first."""
        holding = self._holdings.get(manifest.update)
        if holding is None:
            holding = self._holdings[manifest.update] = Holding(manifest)
        return holding

    def complete(self, number: int) -> bool:
        holding = self._holdings.get(number)
        return holding is not None and holding.complete

    def reached(self, base: bytes | None, target: int) -> Ready | None:
        """Returns what leads from a base to at least the revision `target`, if all of it is here;
        without updates if the base is the newest."""
        way = self._way(base)
        if way is None:
            return None
        if not way:
            done = self.newest >= target
            return Ready(self.lineage, self.newest, (), True) if done else None
        whole: list[Holding] = []
        for manifest in way:
            if not self.complete(manifest.update):
                break
            whole.append(self._holdings[manifest.update])
        if not whole or whole[-1].manifest.revision < target:
            return None
        known = any(base in (m.base, m.digest) for m in self._manifests.values())
        return Ready(self.lineage, whole[-1].manifest.revision, tuple(whole), known)

    def next_to_fetch(self, base: bytes | None) -> Manifest | None:
        """The first update on the way from the base to the newest revision that is not here."""
        way = self._way(base) or ()
        return next((m for m in way if not self.complete(m.update)), None)

    def held_bytes(self) -> int:
        return sum(holding.manifest.byte_count for holding in self._holdings.values())

    def applied(self, numbers: Iterable[int], base: bytes, keep_bytes_max: int) -> list[int]:
        """Updates were applied and the state is `base` now: lets go of those beyond what is kept
        for others, the longest unneeded first.  Returns which others cannot fetch any more."""
        for number in numbers:
            if number in self._holdings:
                self._holdings[number] = self._holdings.pop(number)
        needed = {m.update for m in self._way(base) or ()}
        for number in self._stale - needed:
            self._holdings.pop(number, None)
            self._manifests.pop(number, None)
        self._stale &= needed
        spare = [number for number in self._holdings if number not in needed]
        held = sum(self._holdings[number].manifest.byte_count for number in spare)
        released = []
        for number in spare:
            if held <= keep_bytes_max:
                break
            held -= self._holdings.pop(number).manifest.byte_count  # whom it is given to, keeps it
            released.append(number)
        return released

    def forget(self, numbers: Iterable[int]) -> None:
        """Throws bytes away; who is being given them is told that they are gone."""
        for number in numbers:
            holding = self._holdings.pop(number, None)
            if holding is not None:
                holding.release()

    def _way(self, base: bytes | None) -> Sequence[Manifest] | None:
        return route(self._manifests.values(), base, self.complete)
