"""Decides whether a newcomer may ask to come in: only when what is left to fetch is little.

    round: what differed was fetched, beside the run      (paced: a part of what the way carries)
    entry: what differs then is fetched while the members wait          (at all that it carries)

Theory.  The state goes on changing while it is fetched, so what a round brings is what changed
during the round before it, or less.  That is what will be left at the entry, too, and at most it is
the whole state; at the rate at which the ways carry when nothing paces them it has to come in half
of `hold_s`.  That rate is a guess until an entry was tried (donors send in a part of their time, so
they could send more); an entry that was not in time has measured it.  The guess then begins at what
was measured, and is believed twice as much after each further round: the ways may be better now.

Pure: no clock, no socket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MARGIN: Final = 2.0  # the rest has to fit into hold_s so many times
SAY_EVERY: Final = 8  # rounds


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a newcomer's state is; see `SharedState.progress`.

    Attributes:
        rounds: how often what differed was fetched.
        revision: that this process holds.
        rest_bytes: what is expected to differ when it comes in.
        pace_bytes_per_s: at which it would come then, as far as is known.
        needed_bytes_per_s: at which it would come in time for this peer to come in.
        entries: how often it has come in, and out again since the rest did not come in `hold_s`.
    """

    rounds: int
    revision: int
    rest_bytes: int
    pace_bytes_per_s: float
    needed_bytes_per_s: float
    entries: int

    def __str__(self) -> str:
        return (
            f"revision {self.revision} after {self.rounds} rounds; some {self.rest_bytes} bytes "
            f"will differ again when this peer comes in, and {_rate(self.pace_bytes_per_s)} come"
        )


class CatchingUp:
    """What one newcomer has measured.

    Args:
        state_bytes: of all of the state.
        pace: the part of their time in which donors send beside the run.
        hold_s: how long members may wait for the rest.
        hold_bytes: what they wait for all the same, if it takes longer: as much as a step brings.
    """

    def __init__(self, state_bytes: int, pace: float, hold_s: float, hold_bytes: int = 0) -> None:
        self._pace = pace
        self._hold_s = hold_s
        self._hold_bytes = hold_bytes
        self._rest_bytes = state_bytes
        self._guess = 0.0  # bytes per second of what the ways carry, from rounds
        self._best = 0.0  # of these guesses
        self._known: float | None = None  # by an entry
        self._rounds = 0
        self._entries = 0
        self._revisions = (0, 0)  # of the last two rounds

    def round(self, revision: int, byte_count: int, took_s: float) -> None:
        """So much differed from a revision and has come."""
        if self._rounds > 0:
            self._rest_bytes = byte_count  # the first brings what a stranger lacks
        self._rounds += 1
        self._revisions = (self._revisions[1], revision)
        if byte_count:
            self._guess = byte_count / max(took_s, 1e-6) / self._pace
            self._best = max(self._best, self._guess)
        if self._known is not None:
            self._known *= 2.0

    def entry(self, byte_count: int, took_s: float) -> None:
        """At an entry so much came, which was not all."""
        self._entries += 1
        self._known = max(self._guess / 64, byte_count / max(took_s, 1e-6), 1.0)

    @property
    def hold_s(self) -> float:
        """How long members wait for what is left when this peer comes in.

        By the best rate that was seen: a round that brought little says little of the ways, and who
        was not in time once, or has ever slower ways, must not stop the others for longer.
        """
        best = self._best
        return max(self._hold_s, MARGIN * self._hold_bytes / best) if best else self._hold_s

    @property
    def fits(self) -> bool:
        """Says whether the rest would come in time."""
        return MARGIN * self._rest_bytes <= self.hold_s * self._rate

    @property
    def _rate(self) -> float:
        return self._guess if self._known is None else min(self._known, self._guess)

    @property
    def to_be_said(self) -> bool:
        """Says whether people should be told now that this peer cannot come in."""
        return not self.fits and self._rounds % SAY_EVERY == 2

    def progress(self) -> Progress:
        needed = MARGIN * self._rest_bytes / self.hold_s
        return Progress(
            self._rounds, self._revisions[1], self._rest_bytes, self._rate, needed, self._entries
        )

    def why(self) -> str:
        """Says what keeps this peer out, and what would do."""
        found = self.progress()
        passed = self._revisions[1] - self._revisions[0]
        rate = max(found.pace_bytes_per_s, 1.0)
        return (
            f"the state changes faster than it comes: {found.rest_bytes} bytes differ again after "
            f"{passed} revisions, {_rate(rate)} come, and members wait {self.hold_s:.3g} s at "
            f"most; a pace of {_rate(found.needed_bytes_per_s)} would do, or hold_s="
            f"{MARGIN * found.rest_bytes / rate:.2g}, or apply= on all members"
        )


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.3g} MB/s"
