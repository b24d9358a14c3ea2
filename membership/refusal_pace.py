"""Which refusals an audit log has lines for, and what it says of the others.  Pure: told the time.

A stranger costs a line only by leave: each source (an `address_group`) has some lines a minute, and
all of them together some bytes a minute, so that neither one source nor a crowd of them fills a
disk or drives older lines out.  What is left out is counted: by source, for that source's next
line; and once a minute what no such line has told is summed up, for one line about all of them.

Invariant: at most BYTES_BURST + t * BYTES_PER_S bytes are granted in any t seconds; at most
SOURCES_MAX sources are remembered; every refusal is either granted or in exactly one count that is
handed out.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from pccl.transport.token_bucket import TokenBucket

BYTES_BURST: Final = 32 << 10  # some 180 lines
BYTES_PER_S: Final = (32 << 10) / 60  # 40 MiB of files last for a day of nothing but refusals
SOURCE_BURST: Final = 20.0  # lines of one source: a peer that tries again and again
SOURCE_PER_S: Final = 1 / 6
SOURCES_MAX: Final = 1024
SUMMED_UP_AFTER_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a minute's lines did not tell."""

    count: int
    sources: int  # those that are remembered; the forgotten ones together count as one
    busiest: str  # "" if that is one, or many, of the forgotten
    busiest_count: int


class _Source:
    __slots__ = ("bucket", "left_out")

    def __init__(self, now_s: float) -> None:
        self.bucket = TokenBucket(burst=SOURCE_BURST, rate_per_s=SOURCE_PER_S, now_s=now_s)
        self.left_out = 0


class RefusalPace:
    """One log's."""

    def __init__(self, now_s: float) -> None:
        self._bytes = float(BYTES_BURST)
        self._at_s = now_s
        self._sources: OrderedDict[str, _Source] = OrderedDict()  # heard of longest ago in front
        self._forgotten = 0  # left out, of sources that are not remembered any more
        self._left_out_since_s: float | None = None

    def grant(self, source: str, byte_count: int, now_s: float) -> int | None:
        """Asks for one line of so many bytes.

        Returns:
            how many of this source's were left out since its last line; None: so is this one.
        """
        self._bytes = min(BYTES_BURST, self._bytes + max(0.0, now_s - self._at_s) * BYTES_PER_S)
        self._at_s = now_s
        known = self._known(source, now_s)
        if byte_count > self._bytes or known.bucket.take(now_s) > 0:
            known.left_out += 1
            if self._left_out_since_s is None:
                self._left_out_since_s = now_s
            return None
        self._bytes -= byte_count
        told, known.left_out = known.left_out, 0
        return told

    def due(self, now_s: float) -> LeftOut | None:
        """Returns what is to be summed up now, if anything is."""
        since_s = self._left_out_since_s
        if since_s is None or now_s - since_s < SUMMED_UP_AFTER_S:
            return None
        return self.rest()

    def rest(self) -> LeftOut | None:
        """Returns all that was left out and not told yet, as at the end."""
        self._left_out_since_s = None
        untold = {name: one.left_out for name, one in self._sources.items() if one.left_out}
        if self._forgotten:
            untold[""] = self._forgotten
        self._forgotten = 0
        for one in self._sources.values():
            one.left_out = 0
        if not untold:
            return None
        busiest = max(untold, key=lambda name: untold[name])
        return LeftOut(sum(untold.values()), len(untold), busiest, untold[busiest])

    def _known(self, source: str, now_s: float) -> _Source:
        known = self._sources.get(source)
        if known is None:
            known = self._sources[source] = _Source(now_s)
            if len(self._sources) > SOURCES_MAX:
                _, oldest = self._sources.popitem(last=False)
                self._forgotten += oldest.left_out
        self._sources.move_to_end(source)
        return known
