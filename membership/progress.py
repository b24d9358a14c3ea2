"""Who holds up a step, found from what everybody waits for: stalls (D3) and stragglers (D4).

Every heartbeat names whom its sender's oldest open step waits for, and why: a *post* (the other's
program has not come to the operation), *data*, *credit* (bytes for it that nobody takes), or
*unread* (nothing: its bytes are here, and the sender of the heartbeat does not read them).

D3.  A member is *still* when neither its step nor its byte counter has changed for the patience:
`stall_timeout_s`, 20 round trips at least, and more for one whose own clock runs late.  Who is
still and waits for data or credit is stuck.  Follow what the stuck ones wait for: a member that
moves explains the wait (a big tensor on a slow link never is a stall); one that waits itself hands
the question on; one that is still, in the same step, and waits for nobody, or is not heard, is the
culprit, and is flushed out.  So is who is still and says that bytes lie with it unread: only it can
see that, since the kernel's buffers swallow what is sent to it.  Where nobody is the culprit but
bytes stay queued, the links are suspected (`blocked`), and `links` mends or judges them; if that
changes nothing, who takes no bytes and has none queued itself is the culprit after all.  A step in
which all stand still without any of this is run again by a flush that keeps everybody; if that is
in vain, and there is one for whom all others wait, it is the culprit.

D4.  A member whose post others wait for, and whose own heartbeat says that its program is what is
late, is a straggler; after the run's `straggler_s` it is excluded: out of the view, but admitted.

Guards: the shell hands in what has arrived before it lets time pass; a pause of the coordinator
moves these clocks.  When more than half would be to blame, nobody is by the word of others; who
says of itself that it reads nothing goes all the same, unless nobody who is heard would stay.  A
straggler also stays where too few would be left without it.

Invariant: nobody is blamed by the word of others alone: its own heartbeats, or their absence, say
the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pccl.membership.core import Core, Peer, name
from pccl.membership.peer import BEATS_LATE_MAX
from pccl.transport.native_frames import NO_STEP, Heartbeat, Waiting, WaitKind

RTTS_MIN: Final = 20  # of any patience: a retransmission or two, and a slow-start
PATIENCE_FACTOR_MAX: Final = 2.0  # for a member whose own control thread runs late
NAMES_SHOWN_MAX: Final = 8
_STUCK_KINDS: Final = (WaitKind.DATA, WaitKind.CREDIT, WaitKind.UNREAD)
RETRY_FACTOR: Final = 2.0  # of the patience, before a step nobody holds up is run again


class Progress:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._late: dict[int, tuple[int, float]] = {}  # straggler: the step, and since when
        self._blocked: dict[int, tuple[bytes, ...]] = {}
        self._rerun: int | None = None  # the step that was run again because all stood still
        self._look_s = core.started_s
        self.deadline_s: float | None = None

    # -------------------------------------------------------------- events

    def beat(self, peer: Peer, frame: Heartbeat, now_s: float) -> None:
        before = (peer.step, peer.progress, peer.watermark, peer.waiting, bool(peer.waits))
        after = (frame.step, frame.progress, frame.watermark, frame.waiting, bool(frame.waits))
        if before != after:
            peer.moved_s = now_s
        if frame.epoch >= peer.excluded_epoch:  # else of the time before it was left out
            peer.watermark = max(peer.watermark, frame.watermark)
        peer.step, peer.progress, peer.waits = frame.step, frame.progress, frame.waits
        peer.waiting, peer.lag_ms, peer.rtt_us = frame.waiting, frame.lag_ms, frame.rtt_us
        if frame.waits and self.deadline_s is None:
            self.deadline_s = self._look_s = now_s + self._core.config.profile.heartbeat_s

    def blocked(self, peer: Peer) -> tuple[bytes, ...]:
        """Returns to whom this peer's bytes have stood still, with nobody but the link to blame."""
        return self._blocked.get(peer.incarnation, ())

    def paused(self, duration_s: float) -> None:
        for peer in self._core.peers.values():
            peer.moved_s += duration_s
        self._late = {i: (step, s + duration_s) for i, (step, s) in self._late.items()}

    # -------------------------------------------------------------- time

    def advance(self, now_s: float) -> None:
        core = self._core
        if self.deadline_s is None or now_s < self._look_s:
            return
        members = core.members()
        if core.flushing or not any(p.waits for p in members):
            self._late.clear()
            self._blocked.clear()
            self.deadline_s = None  # until a heartbeat names somebody again
            return
        self.deadline_s = self._look_s = now_s + core.config.profile.heartbeat_s
        by_id = {p.peer_id: p for p in members if p.gone is None}
        self._judge_stall(by_id, now_s)
        if not core.flush_reasons:
            self._judge_stragglers(by_id, now_s)

    def _waits(
        self, by_id: dict[bytes, Peer], *kinds: WaitKind
    ) -> Iterator[tuple[Peer, Peer, int]]:
        """Yields who waits for whom and why, among members."""
        for peer in by_id.values():
            for wait in peer.waits:
                if wait.kind in kinds and (other := by_id.get(wait.peer)) not in (None, peer):
                    yield peer, other, wait.kind

    def _patience_s(self, peer: Peer, base_s: float) -> float:
        """Stretches a duration for a member that is itself short of processor time."""
        lag_beats = peer.lag_ms / 1000 / self._core.config.profile.heartbeat_s
        return base_s * min(1.0 + lag_beats, PATIENCE_FACTOR_MAX)

    def _unheard(self, peer: Peer, now_s: float) -> bool:
        late_s = BEATS_LATE_MAX * self._core.config.profile.heartbeat_s
        return peer.silent or now_s > peer.last_beat_s + self._patience_s(peer, late_s)

    # -------------------------------------------------------------- D3

    def _stall_s(self, by_id: dict[bytes, Peer]) -> float:
        rtt_s = max((p.rtt_us for p in by_id.values()), default=0) / 1e6
        return max(self._core.config.profile.stall_timeout_s, RTTS_MIN * rtt_s)

    def _judge_stall(self, by_id: dict[bytes, Peer], now_s: float) -> None:
        core = self._core
        stall_s = self._stall_s(by_id)

        def still(peer: Peer, factor: float = 1.0) -> bool:
            since_s = max(peer.moved_s, core.installed_s)
            return now_s >= since_s + factor * self._patience_s(peer, stall_s)

        culprits: dict[int, Peer] = {}  # by the word of others
        deaf: dict[int, Peer] = {}  # by their own
        blocked: dict[int, set[bytes]] = {}
        stuck: Peer | None = None
        for peer, other, kind in self._waits(by_id, *_STUCK_KINDS):
            if not still(peer):
                continue
            stuck = peer
            if kind == WaitKind.UNREAD:
                deaf[peer.incarnation] = peer
                continue
            unheard = self._unheard(other, now_s)
            if unheard or (_waits_for_nobody(other, peer.step) and still(other)):
                culprits[other.incarnation] = other
            elif kind == WaitKind.CREDIT and still(other):
                blocked.setdefault(peer.incarnation, set()).add(other.peer_id)
                blocked.setdefault(other.incarnation, set()).add(peer.peer_id)
                # Two have no third who could relay; else the link is the first to be mended.
                factor = 1.0 if len(by_id) == 2 else RETRY_FACTOR
                if _takes_nothing(other) and still(other, factor):
                    culprits[other.incarnation] = other
        culprits = self._braked(by_id, culprits, deaf, now_s)
        for culprit in culprits.values():
            what = "is not heard" if self._unheard(culprit, now_s) else "does nothing about it"
            if culprit.incarnation in deaf:
                what = "reads nothing of what was sent to it"
            core.lose(culprit, f"others wait for it in step {culprit.step}, and it {what}")
        self._blocked = {} if culprits else {i: tuple(sorted(ids)) for i, ids in blocked.items()}
        if stuck is None or culprits or blocked or any(map(_in_program, by_id.values())):
            return
        again = self._rerun == stuck.step
        if not all(still(peer, 1.0 if again else RETRY_FACTOR) for peer in by_id.values()):
            return
        self._rerun = stuck.step
        middle = self._middle(by_id) if again else None
        if middle is not None:
            core.lose(middle, f"all others wait for it in step {stuck.step}, a second time")
        else:
            core.want_flush(f"step {stuck.step} stands still, and nobody holds it up")

    def _braked(
        self,
        by_id: dict[bytes, Peer],
        accused: dict[int, Peer],
        deaf: dict[int, Peer],
        now_s: float,
    ) -> dict[int, Peer]:
        """Returns who of the accused, and of those that accuse themselves, goes."""
        if 2 * len(accused | deaf) > len(by_id):
            accused = {}  # that many at once: rather something that all share
        others = (p for p in by_id.values() if p.incarnation not in accused | deaf)
        somebody_stays = any(not self._unheard(p, now_s) for p in others)
        return accused | deaf if somebody_stays else accused

    def _middle(self, by_id: dict[bytes, Peer]) -> Peer | None:
        """Returns the one member for whom every other waits; None if there is not just one."""
        waiting: dict[int, set[int]] = {}
        for peer, other, _ in self._waits(by_id, WaitKind.DATA, WaitKind.CREDIT):
            waiting.setdefault(other.incarnation, set()).add(peer.incarnation)
        found = [i for i, others in waiting.items() if len(others) == len(by_id) - 1]
        return self._core.peers[found[0]] if len(found) == 1 and len(by_id) > 2 else None

    # -------------------------------------------------------------- D4

    def _judge_stragglers(self, by_id: dict[bytes, Peer], now_s: float) -> None:
        core = self._core
        accused: dict[int, tuple[int, float]] = {}
        for peer, other, _ in self._waits(by_id, WaitKind.POST):
            known = self._late.get(other.incarnation)
            if self._unheard(other, now_s) or not _is_late(other, peer.step):
                continue
            since_s = known[1] if known is not None and known[0] == peer.step else now_s
            accused.setdefault(other.incarnation, (peer.step, since_s))
        self._late = accused
        allowed_s = core.straggler_after_s()
        if allowed_s is None:
            return  # the run waits for everybody
        due = [
            core.peers[i]
            for i, (_, since_s) in accused.items()
            if now_s >= since_s + self._patience_s(core.peers[i], allowed_s)
        ]
        if 2 * len(due) > len(by_id):
            return  # the majority sets the pace
        for peer in due:
            step, since_s = accused.pop(peer.incarnation)
            late_s = now_s - since_s
            core.exclude(peer, f"others waited {late_s:.1f} s for it to come to step {step}")

    # -------------------------------------------------------------- for people

    def describe(self, now_s: float) -> list[dict[str, Any]]:
        """Returns who waits for whom, for the status."""
        by_id = {p.peer_id: p for p in self._core.members()}
        lines: dict[tuple[int, int], dict[str, Any]] = {}
        for peer, other, kind in self._waits(by_id, *WaitKind):
            line = lines.setdefault(
                (peer.incarnation, kind),
                {
                    "peer": name(peer),
                    "step": peer.step,
                    "for": WaitKind(kind).name.lower(),
                    "of": [],
                    "still_s": round(max(0.0, now_s - peer.moved_s), 3),
                },
            )
            if len(line["of"]) < NAMES_SHOWN_MAX:
                line["of"].append(name(other))
        return list(lines.values())


def _in_program(peer: Peer) -> bool:
    """Says whether the peer's own program is what its part of the step waits for."""
    return peer.waiting in (Waiting.PROGRAM, Waiting.GATE) or peer.step == NO_STEP


def _waits_for_nobody(peer: Peer, step: int) -> bool:
    """Says whether a peer is in this very step, and nothing that it names keeps it there."""
    return peer.step == step and not peer.waits and not _in_program(peer)


def _takes_nothing(peer: Peer) -> bool:
    """Says whether a peer whom bytes are sent to has none of its own that nobody takes: then it,
    rather than its links, is what stands still."""
    queued = any(wait.kind == WaitKind.CREDIT for wait in peer.waits)
    return not queued and not _in_program(peer)


def _is_late(peer: Peer, step: int) -> bool:
    """Says whether a peer's own status agrees that its program has not come through `step`."""
    return peer.watermark <= step and _in_program(peer)
