"""Decides which leaf is asked of which source.  Pure: no clock, no socket.

    PENDING --asked--> UNDER WAY --right--> DONE
       ^                  |
       +-- wrong, source lost or slow: asked elsewhere

Sources are equal: all have shown the same root.  Each is asked for a few leaves at a time, as fast
as it answers, so that faster ones serve more.  A wrong leaf is a strike; a source with too many is
excluded for good.  A source whose stream moves nothing for STALL_S is reported lost by the shell,
since its leaves may be had elsewhere; at the end, idle sources are asked for what slow ones still
owe.

Invariants: a leaf is written once (`arrived` says which); a source is asked only for leaves that it
has not sent wrongly; what is missing is pending or owed by a usable source, or it is hopeless.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pccl.outcome import Peer

STRIKES_MAX: Final = 3
WINDOW_BYTES: Final = 16 << 20  # asked of one source at a time, over all of its streams
BATCH_LEAVES_MAX: Final = 64
BATCH_BYTES: Final = 4 << 20
STALL_S: Final = 1.0
STALL_GROWS: Final = 4.0  # with each fetch in vain: a busy machine stops its processes for a second


def stall_after(failures: int, left_s: float) -> float:
    """Returns how long a source may move nothing, after so many fetches of the same in vain: once
    nobody else is left to be asked, who is slow is better than nobody; but half of the time that
    there is for this fetch must be left to ask others."""
    return min(STALL_S * STALL_GROWS**failures, max(STALL_S / 4, left_s / 2))


def pause_before(failures: int, since_s: float, left_s: float) -> float:
    """Returns how long to wait before the next fetch of the same, `since_s` after the last began: a
    source that refuses at once gets as much time in all as one that is silent."""
    return max(0.0, stall_after(failures - 1, left_s) - since_s) if failures else 0.0


@dataclass(slots=True)
class Transfer:
    """What a fetch has cost, and who failed in it.

    Attributes:
        byte_count: of contents received, right or wrong.
        broken_bytes: received of pieces that have not come whole.
        leaf_count: leaves written.
        tensors: names of those that were changed.
        struck: sources that sent wrong bytes, with what they did.
        lost: sources that went silent or away.
        by_source: bytes of right contents from each.
    """

    byte_count: int = 0
    broken_bytes: int = 0
    leaf_count: int = 0
    tensors: tuple[str, ...] = ()
    struck: dict[Peer, str] = field(default_factory=dict)
    lost: dict[Peer, str] = field(default_factory=dict)
    by_source: dict[Peer, int] = field(default_factory=dict)


@dataclass(slots=True)
class Source:
    """What is known of one source."""

    key: bytes
    owes: dict[int, None] = field(default_factory=dict)  # leaves in the order asked for
    strikes: int = 0
    lost: str | None = None
    excluded: bool = False
    byte_count: int = 0  # of right leaves
    wrong: set[int] = field(default_factory=set)

    @property
    def usable(self) -> bool:
        return self.lost is None and not self.excluded


class Fetching:
    """One transfer.

    Args:
        leaves: those that are needed.
        sizes: of all leaves of the layout, in bytes.
        sources: keys of those that hold them.
    """

    def __init__(
        self,
        leaves: Iterable[int],
        sizes: Sequence[int],
        sources: Iterable[bytes],
    ) -> None:
        self._sizes = sizes
        self.sources = {key: Source(key) for key in sources}
        self._pending = deque(leaves)
        self._missing = set(self._pending)  # not received rightly
        self._unwritten = 0  # received, and on its way into memory
        self.byte_count = 0  # received, right or wrong
        self.needed_bytes = sum(sizes[leaf] for leaf in self._missing)

    @property
    def done(self) -> bool:
        """Says whether all is received and written."""
        return not self._missing and not self._unwritten

    @property
    def missing(self) -> list[int]:
        return sorted(self._missing)

    @property
    def hopeless(self) -> str | None:
        """Says why what is missing cannot come any more; None while it can."""
        if not self._missing:
            return None
        usable = [source for source in self.sources.values() if source.usable]
        if not usable:
            whys = [
                f"{s.key.hex()[:8]} {s.lost or 'sent wrong bytes'}" for s in self.sources.values()
            ]
            return "no source is left: " + ("; ".join(whys) or "there was none")
        for leaf in self._missing:
            if all(leaf in source.wrong for source in usable):
                return f"every source that is left has sent leaf {leaf} wrongly"
        return None

    def ask(self, key: bytes) -> list[int]:
        """Returns the leaves to ask this source for now; none if it owes enough, or is out."""
        source = self.sources[key]
        owed = sum(self._sizes[leaf] for leaf in source.owes)
        if not source.usable or owed > WINDOW_BYTES - BATCH_BYTES:
            return []
        batch = self._take(source)
        source.owes.update(dict.fromkeys(batch))
        return batch

    def _take(self, source: Source) -> list[int]:
        batch: list[int] = []
        size = 0
        skipped: list[int] = []
        while self._pending and len(batch) < BATCH_LEAVES_MAX and size < BATCH_BYTES:
            leaf = self._pending.popleft()
            if leaf not in self._missing:
                continue
            if leaf in source.wrong:
                skipped.append(leaf)
                continue
            batch.append(leaf)
            size += self._sizes[leaf]
        self._pending.extendleft(reversed(skipped))
        if not batch and not source.owes:
            batch = self._of_the_slowest(source)
        return batch

    def _of_the_slowest(self, source: Source) -> list[int]:
        """What another one still owes, last first: it comes to the first of them itself."""
        others = [other for other in self.sources.values() if other is not source and other.owes]
        if not others:
            return []
        slowest = max(others, key=lambda s: (len(s.owes), s.key))
        batch: list[int] = []
        for leaf in reversed(slowest.owes):
            if leaf in self._missing and leaf not in source.wrong:
                batch.append(leaf)
            if len(batch) * 2 >= len(slowest.owes) or len(batch) >= BATCH_LEAVES_MAX:
                break
        return batch

    def arrived(self, key: bytes, leaf: int, right: bool) -> bool:
        """Takes note of a leaf; says whether it is to be written (the first right one is)."""
        source = self.sources[key]
        source.owes.pop(leaf, None)
        self.byte_count += self._sizes[leaf]
        if right:
            source.byte_count += self._sizes[leaf]
            if leaf in self._missing:
                self._missing.discard(leaf)
                self._unwritten += 1
                return True
            return False
        source.wrong.add(leaf)
        source.strikes += 1
        self._again([leaf])
        if source.strikes >= STRIKES_MAX:
            source.excluded = True
            self._again(source.owes)
            source.owes.clear()
        return False

    def written(self) -> None:
        """A leaf that `arrived` had said to write is in memory."""
        self._unwritten -= 1

    def lose(self, key: bytes, why: str) -> None:
        """This source answers no more; what it owes is asked elsewhere."""
        source = self.sources[key]
        if source.lost is None:
            source.lost = why
        self._again(source.owes)
        source.owes.clear()

    def _again(self, leaves: Iterable[int]) -> None:
        self._pending.extendleft(leaf for leaf in leaves if leaf in self._missing)
