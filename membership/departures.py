"""Who goes: at once, by a plan, or because the time for a plan is over.

    member --Drain--> draining --planned out--> leaver --nobody needs it--> dismissed
              |                      |
              +-- deadline ----------+-- deadline, still needed --> flushed out at once

A *leaver* is a member that an activated view is without.  It is needed until all the others have
decided every step in which it takes part.  Whether that is so, heartbeats tell; so when a leaver is
lost, the others are given the time of one heartbeat before anything is aborted; while it lives and
has only to be let go, that of a lease, for they may be deciding its last steps.

Invariants: nobody is flushed out for a Drain before its deadline; a leaver that is not needed any
more costs nothing, whatever becomes of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pccl.membership.core import Core, Peer, name
from pccl.membership.record import Activation
from pccl.transport.native_frames import Report

LEFT = "left the run"
DENIED = "its key, or the ticket it came by, was revoked"


class Departures:
    def __init__(self, core: Core) -> None:
        self._core = core

    # -------------------------------------------------------------- events

    def drain(self, peer: Peer, deadline_s: float, reason: str, now_s: float) -> None:
        """The peer wants to be planned out.  Repeated: the earliest deadline counts."""
        core = self._core
        # Being flushed out takes a moment, too; what remains of a short time is halved.
        margin_s = min(core.config.leave_report_s, deadline_s / 2)
        cut_s = now_s + deadline_s - margin_s
        if peer.drain_cut_s is None:
            core.log("info", f"peer {name(peer)} drains for {deadline_s:g} s: {reason}")
            peer.drain_cut_s = cut_s
        peer.drain_cut_s = min(peer.drain_cut_s, cut_s)
        if not core.is_member(peer.incarnation) and peer.incarnation not in core.joiners():
            core.expel(peer, LEFT)

    def leaving(self, peer: Peer, reason: str, decided_below: int, now_s: float) -> None:
        """The peer closes; it goes on only until it hears the goodbye."""
        core = self._core
        core.log("info", f"peer {name(peer)} leaves: {reason}")
        if peer.leaving_s is not None or peer.goodbye_s is not None:
            return
        entering = core.activation
        if core.is_leaver(peer.incarnation) and entering is not None:
            peer.watermark = max(peer.watermark, decided_below)
            if peer.watermark >= entering.step:
                peer.goodbye_s = now_s
                return
        self._flush_out(peer, now_s)

    def denied(self, peer_ids: Collection[bytes]) -> None:
        """Gives up all peers with these ids at once, as if they had died."""
        if self._core.outdated:
            return
        for peer in list(self._core.peers.values()):
            if peer.peer_id in peer_ids:
                self._core.lose(peer, DENIED)

    def _flush_out(self, peer: Peer, now_s: float) -> None:
        core = self._core
        peer.leaving_s = now_s
        if core.is_member(peer.incarnation):
            core.want_flush(f"{name(peer)} leaves")
        elif peer.incarnation in core.joiners():
            core.want_flush(f"joiner {name(peer)} leaves")
            core.expel(peer, LEFT)
        else:
            core.expel(peer, LEFT)

    # -------------------------------------------------------------- time

    def deadline_s(self) -> float | None:
        core = self._core
        if core.flushing:
            return None
        times = []
        for peer in core.peers.values():
            if (peer.drain_cut_s is not None or peer.goodbye_s is not None) and peer.here():
                if peer.drain_cut_s is not None:
                    times.append(peer.drain_cut_s)
                if peer.goodbye_s is not None:
                    times.append(peer.goodbye_s + core.config.profile.lease_s)
        return min(times, default=None)

    def paused(self, duration_s: float) -> None:
        for peer in self._core.peers.values():
            if peer.drain_cut_s is not None:
                peer.drain_cut_s += duration_s
            if peer.goodbye_s is not None:
                peer.goodbye_s += duration_s

    def advance(self, now_s: float) -> None:
        core = self._core
        if core.flushing:
            return
        for peer in list(core.peers.values()):
            if peer.lost_s is not None:
                self._judge_lost(peer, peer.lost_s)
            elif (peer.drain_cut_s is not None or peer.goodbye_s is not None) and peer.here():
                self._judge(peer, now_s)

    def _judge(self, peer: Peer, now_s: float) -> None:
        core = self._core
        bye_s = peer.goodbye_s
        overdue = peer.drain_cut_s is not None and now_s >= peer.drain_cut_s
        comes_in = peer.incarnation in core.joiners()
        learner = not comes_in and not core.is_member(peer.incarnation)
        if core.is_leaver(peer.incarnation) and core.is_drained(peer):
            if bye_s is not None or overdue:
                core.dismiss(peer, LEFT)
        elif learner and not peer.out:
            core.expel(peer, LEFT)  # it was left out as a straggler meanwhile
        elif overdue or (bye_s is not None and now_s >= bye_s + core.config.profile.lease_s):
            core.log("info", f"no more time to plan {name(peer)} out")
            self._flush_out(peer, now_s)

    def _judge_lost(self, peer: Peer, lost_s: float) -> None:
        """A leaver is gone: the others' heartbeats from after that say whether it is missed."""
        core = self._core
        if not core.is_leaver(peer.incarnation) or core.is_drained(peer):
            return
        heartbeat_s = core.config.profile.heartbeat_s
        others = [p for p in core.members() if p is not peer and p.here()]
        if all(p.last_beat_s >= lost_s + heartbeat_s for p in others):
            peer.lost_s = None
            core.want_flush(f"{name(peer)}, while it left: {peer.gone}")


def departed(
    entering: Activation | None, leavers: Sequence[int], reports: Mapping[int, Report]
) -> tuple[int, ...]:
    """Returns the leavers among the reporters that the next view is without.

    A step at or after the switch may be committed, or be so by this flush, only if everybody who
    stays has switched; then who was to leave before it has no place any more.  Somebody who
    stays is among the reporters, unless nobody was to stay.
    """
    if entering is None:
        return ()
    staying = [r for i, r in reports.items() if i not in leavers]
    epoch = entering.view.epoch
    without = bool(staying) and (
        all(r.epoch >= epoch for r in staying) or all(r.watermark >= entering.step for r in staying)
    )
    return tuple(i for i in leavers if i in reports and (without or reports[i].epoch >= epoch))
