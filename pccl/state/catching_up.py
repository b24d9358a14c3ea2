"""Decides whether a newcomer may ask to come in: only when what is left to do is little.

    round: what differed was fetched, or replayed, beside the run     (paced: a part of the ways)
    entry: what differs then is fetched or replayed while the members wait          (all of it)

Theory.  The state goes on changing while it is fetched, so what a round brings is what changed
during the round before it, or less.  That is what will be left at the entry, too, and at most it is
the whole state; at the rate at which the ways carry when nothing paces them it has to come in half
of `hold_s`.  That rate is a guess until an entry was tried (donors send in a part of their time, so
they could send more); an entry that was not in time has measured it.  The guess then begins at what
was measured, and is believed twice as much after each further round: the ways may be better now.

Who replays instead has to replay, at the entry, what the members make while it waits at the gate:
as many revisions as they make in GATE_S, until an entry has shown how many there were.  What comes
of that is hashed while the members wait, which counts, too.  What was fetched was checked as it
came, and the memory before it is hashed while the members hash theirs.

Pure: no clock, no socket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

HOLD_S: Final = 1.0
HASHINGS: Final = 4.0  # and so many passes over the memory: members make one in that step, too
MARGIN: Final = 2.0  # the rest has to fit into hold_s so many times
GATE_S: Final = 0.5  # from the last replay to the entry, until one was tried
HOLD_S_MAX: Final = 60.0  # members wait no longer for one newcomer, however much a step brings
HOLD_PART: Final = 0.5  # of a step's own time, which would else be over for all
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
            f"will differ again when this peer comes in, and {words_of(self.pace_bytes_per_s)} come"
        )


class CatchingUp:
    """What one newcomer has measured.

    Args:
        state_bytes: of all of the state.
        pace: the part of their time in which donors send beside the run.
        hold_s: how long members may wait for the rest; None: HOLD_S and HASHINGS passes of hashing.
        hold_bytes: what they wait for all the same, if it takes longer (and not longer than
            `hold_s_max`): as much as a step brings.
        hold_s_max: limits what is not given, but follows from what was measured.
        replays: whether what is left is replayed, not fetched.
    """

    def __init__(
        self,
        state_bytes: int,
        pace: float,
        hold_s: float | None,
        hold_bytes: int = 0,
        *,
        hold_s_max: float = HOLD_S_MAX,
        replays: bool = False,
    ) -> None:
        self._pace = pace
        self._hold_s = hold_s
        self._hold_bytes = hold_bytes
        self._hold_s_max = hold_s_max
        self._state_bytes = self._rest_bytes = state_bytes
        self._guess = 0.0  # bytes per second of what the ways carry, from rounds
        self._best = 0.0  # of these guesses
        self._known: float | None = None  # by an entry
        self._rounds = 0
        self._entries = 0
        self._revisions = (0, 0)  # of the last two rounds
        self._replays = replays
        self._hash_s = 0.0  # one pass over the memory
        self._seen: tuple[int, float] | None = None  # a revision of the members, and when
        self._made_per_s = 0.0  # revisions, by the members
        self._replay = (0, 0, 0.0)  # the newest: revisions, bytes, seconds if nothing is paced
        self._backlog = 0.0  # revisions to be replayed at the entry, as the last one has shown
        self._ready = False  # the last round has brought all that there was
        self.behind = False
        """Whether updates were still coming when the last replay ended."""

    def round(self, revision: int, byte_count: int, took_s: float) -> None:
        """So much differed from a revision and has come."""
        if self._rounds > 0:
            self._rest_bytes = byte_count  # the first brings what a stranger lacks
        self._rounds += 1
        self._ready = True
        self._revisions = (self._revisions[1], revision)
        if byte_count:
            self._guess = byte_count / max(took_s, 1e-6) / self._pace
            self._best = max(self._best, self._guess)
        if self._known is not None:
            self._known *= 2.0

    def lacks_nothing(self, revision: int) -> None:
        """Nothing differed from a revision."""
        self.round(revision, 0, 0.0)
        self._rest_bytes = 0

    def failed(self) -> None:
        """The last round has not brought what it was for."""
        self._ready = False

    def hashed(self, took_s: float) -> None:
        """All of the memory was hashed, which it will be at the entry."""
        self._hash_s = took_s

    def members_hold(self, revision: int, now_s: float) -> None:
        """The members are at this revision."""
        if self._seen is not None and now_s > self._seen[1] and revision >= self._seen[0]:
            self._made_per_s = (revision - self._seen[0]) / (now_s - self._seen[1])
        self._seen = revision, now_s

    def replayed(
        self,
        revisions: int,
        byte_count: int,
        took_s: float,
        apply_s: float,
        *,
        behind: bool = False,
    ) -> None:
        """So many updates were replayed beside the run, which were applied for `apply_s` of that
        time, and received in the rest; `behind`: there were more."""
        if revisions:
            unpaced_s = apply_s + (took_s - apply_s) * self._pace
            self._replay = revisions, byte_count, max(unpaced_s, 1e-6)
        self._backlog /= 2.0
        self.behind = behind

    def entry(self, byte_count: int, took_s: float, backlog: int = 0) -> None:
        """At an entry so much came, which was not all; so many revisions were to be replayed."""
        self._entries += 1
        self._backlog = max(0, backlog)
        self._rest_bytes = self._rest_bytes or self._state_bytes  # who lacked nothing lacks some
        self._known = max(self._guess / 64, byte_count / max(took_s, 1e-6), 1.0)

    @property
    def hold_s(self) -> float:
        """How long members wait for what is left when this peer comes in.

        By the best rate that was seen: a round that brought little says little of the ways, and who
        was not in time once, or has ever slower ways, must not stop the others for longer.
        """
        least = self._hold_s
        if least is None:
            least = min(self._hold_s_max, HOLD_S + HASHINGS * self._hash_s)
        best = self._best
        as_much_s = MARGIN * self._hold_bytes / best if best else 0.0
        return max(least, min(self._hold_s_max, as_much_s))

    @property
    def fits(self) -> bool:
        """Says whether the rest would come in time, or be replayed in time."""
        if MARGIN * self._rest_bytes <= self.hold_s * self._rate:
            return True
        if not self._replays or self.behind:
            return False
        return MARGIN * self._backlog_s + self._hash_s <= self.hold_s

    def replays_sooner(self, revisions: int) -> bool:
        """Says whether so many revisions are replayed in less time than all that may differ is
        fetched in, as far as is known."""
        replay_s = revisions * self._replay_s + self._hash_s
        return replay_s * self._rate <= self._rest_bytes or not self._rate

    @property
    def may_enter(self) -> bool:
        return self._ready and self.fits

    @property
    def _backlog_s(self) -> float:
        """How long what will have to be replayed at the entry takes here."""
        return self._backlog_revisions * self._replay_s

    @property
    def _backlog_revisions(self) -> float:
        return max(self._made_per_s * GATE_S, self._backlog)

    @property
    def _replay_s(self) -> float:
        revisions, _, took_s = self._replay
        return took_s / revisions if revisions else 0.0

    @property
    def _rate(self) -> float:
        return self._guess if self._known is None else min(self._known, self._guess)

    @property
    def to_be_said(self) -> bool:
        """Says whether people should be told now that this peer cannot come in."""
        return not self.fits and self._rounds % SAY_EVERY == 2

    def progress(self) -> Progress:
        left_s, rest, rate = self.hold_s, float(self._rest_bytes), self._rate
        revisions, byte_count, took_s = self._replay
        if self._replays and revisions:
            left_s = max(left_s - self._hash_s, 1e-3)
            rest = self._backlog_revisions * byte_count / revisions
            rate = byte_count / took_s
        needed = MARGIN * rest / left_s
        return Progress(self._rounds, self._revisions[1], int(rest), rate, needed, self._entries)

    def why(self) -> str:
        """Says what keeps this peer out, and what would do."""
        found = self.progress()
        if self._replays and self._replay[0]:
            would_do_s = self._hash_s + MARGIN * self._backlog_s
            return (
                f"updates come faster than apply= makes them here: members make "
                f"{self._made_per_s:.3g} revisions a second, each takes {self._replay_s:.3g} s "
                f"here, some {self._backlog_revisions:.3g} are due as this peer comes in, hashing "
                f"takes {self._hash_s:.3g} s, and members wait {self.hold_s:.3g} s at most; a pace "
                f"of {words_of(found.needed_bytes_per_s)} of updates would do (it is "
                f"{words_of(found.pace_bytes_per_s)}), or hold_s={would_do_s:.2g}, or fewer steps"
            )
        passed = self._revisions[1] - self._revisions[0]
        rate = max(found.pace_bytes_per_s, 1.0)
        would_do_s = MARGIN * found.rest_bytes / rate
        return (
            f"the state changes faster than it comes: {found.rest_bytes} bytes differ again after "
            f"{passed} revisions, {words_of(rate)} come, and members wait {self.hold_s:.3g} s at "
            f"most; a pace of {words_of(found.needed_bytes_per_s)} would do, or hold_s="
            f"{would_do_s:.2g}, or apply= on all members"
        )


def words_of(bytes_per_s: float) -> str:
    """Says a rate to people."""
    return f"{bytes_per_s / 1e6:.3g} MB/s" if bytes_per_s >= 1e3 else f"{bytes_per_s:.3g} bytes/s"
