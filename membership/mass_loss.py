"""The brake on a flush in which most members are not heard: the coordinator's own network is the
likelier culprit then, and those that it still hears must not go on without the others.

It holds while more than half of the members are silent, or about to be (`BEATS_LATE_MAX` heartbeats
late), `mass_loss_grace_s` at most; members fall silent within a flush, so within some seconds of
each other.  Once enough are heard again, the others have time to dial again and to answer.

What does not count: who is proven dead, or on its way out, is no member any more; silence that a
restart or a long pause of the coordinator explains had a window of its own.  A step that is past
its deadline waits only so long for a decision, and the flush no longer than that.

Invariant: a flush takes longer by no more than the grace and the time to dial again.
"""

from __future__ import annotations

from pccl.base.config import REDIAL_MAX_S
from pccl.membership.core import Core, Peer
from pccl.membership.peer import BEATS_LATE_MAX
from pccl.transport.native_frames import SuspectCode


class Brake:
    """Of one flush."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._since_s: float | None = None  # when most were missed first
        self._overdue_s: float | None = None  # since when some step is past its deadline
        self._missed: tuple[int, int] | None = None  # how many of how many, while most are
        self._told = False

    @property
    def tried(self) -> bool:
        """Says whether most have been missed in this flush, now or before."""
        return self._since_s is not None

    def look(self, returned_s: float, now_s: float) -> float | None:
        """Counts anew; returns until when the others have time if most are not missed any more.

        Args:
            returned_s: until then members could come back after a restart or a long pause.
        """
        core = self._core
        if self._overdue_s is None and any(
            a.code in (SuspectCode.DEADLINE, SuspectCode.NONFINITE) for a in core.accusations
        ):
            self._overdue_s = now_s
        members = [p for p in core.members() if p.here() and not core.is_drained(p)]
        missed = sum(self._is_missed(p, returned_s, now_s) for p in members)
        before = self._missed
        self._missed = (missed, len(members)) if 2 * missed > len(members) else None
        if self._missed is not None:
            self._since_s = now_s if self._since_s is None else self._since_s
            return None
        if before is None or now_s >= self._until_s():
            return None
        if self._told:
            core.log("info", f"{len(members) - missed} of {len(members)} members are heard again")
        answer_by_s = core.now_s + REDIAL_MAX_S + core.config.profile.flush_timeout_s
        return answer_by_s if self._overdue_s is None else min(answer_by_s, self._until_s())

    def _is_missed(self, peer: Peer, returned_s: float, now_s: float) -> bool:
        profile = self._core.config.profile
        if peer.last_beat_s + profile.lease_s <= returned_s:
            return False
        return peer.silent or now_s >= peer.last_beat_s + BEATS_LATE_MAX * profile.heartbeat_s

    def _until_s(self) -> float:
        assert self._since_s is not None
        until_s = self._since_s + self._core.config.mass_loss_grace_s
        if self._overdue_s is not None:
            until_s = min(until_s, self._overdue_s + self._core.config.profile.reattach_window_s)
        return until_s

    def holds_until_s(self, now_s: float) -> float | None:
        """Returns until when the view must not shrink; None: it may, as far as this goes."""
        why = self.why(now_s)
        if why is None:
            return None
        if not self._told:
            self._core.log("warning", why)
        self._told = True
        return self._until_s()

    def why(self, now_s: float) -> str | None:
        """Says why the flush waits, while it does for this."""
        if self._missed is None or now_s >= self._until_s():
            return None
        missed, members = self._missed
        return (
            f"{missed} of {members} members are silent at once: rather this coordinator's own "
            f"network than they; the view does not shrink for {self._until_s() - now_s:.0f} s more"
        )

    def paused(self, duration_s: float) -> None:
        if self._since_s is not None:
            self._since_s += duration_s
        if self._overdue_s is not None:
            self._overdue_s += duration_s
