"""Which plan comes next: who asked to go first, then a better order, then who waits to come in.

Invariant: what is proposed, the present members can follow: all are attached and have installed the
view in force.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from pccl.membership import rules
from pccl.membership.core import Core, Peer
from pccl.membership.messages import MEMBERS_MAX
from pccl.membership.peer import ENGINE_DUE_S
from pccl.membership.plan import Kind, Phase, Plan
from pccl.membership.record import ANY_NAME
from pccl.membership.replicas import whole
from pccl.membership.ring import keep_apart
from pccl.membership.view import FIRST_STEP_UNKNOWN, Member, View


class Choosing:
    def __init__(self, core: Core) -> None:
        self._core = core

    def someone_drains(self) -> bool:
        return any(p.drain_cut_s is not None and p.present() for p in self._core.members())

    def members_can_follow(self) -> bool:
        core = self._core
        view = core.view
        return view is None or all(
            p.present() and p.agent is not None and not p.silent and p.epoch >= view.epoch
            for p in core.members()
        )

    def next_plan(self, now_s: float) -> tuple[Plan | None, float | None]:
        """Returns what is planned next, or nothing and when to look again."""
        core = self._core
        if core.view is not None:
            plan = self._leave(core.view, now_s) or self._reorder(core.view, now_s)
            if plan is not None:
                return plan, None
        entering = [p for p in core.peers.values() if self._is_entering(p, now_s)]
        ready, times = self._ready(entering, now_s)
        ready = whole(core.view, ready)
        if core.view is None:
            plan, settled_s = self._first(ready, now_s)
            times += [] if settled_s is None else [settled_s]
        else:
            plan = self._join(core.view, ready, now_s) if ready else None
            if plan is None:
                plan = self._warm(core.view, times, now_s)
        return plan, min(times, default=None)

    def entering(self, now_s: float) -> list[Peer]:
        """Returns the newcomers that wait at an entry and may come in now."""
        waiting = [p for p in self._core.peers.values() if self._is_entering(p, now_s)]
        return whole(self._core.view, self._ready(waiting, now_s)[0])

    def could_begin(self, waited_s: float, now_s: float) -> bool:
        """Says whether those who have waited at their entries for so long make a first view, if
        there is no other any more."""
        waiting = [
            p
            for p in self._core.peers.values()
            if self._is_entering(p, now_s)
            and now_s >= max(p.entry_since_s + waited_s, p.plan_retry_s, p.entry_retry_s)
        ]
        return self._enough(waiting) is not None

    # -------------------------------------------------------------- members alone

    def _leave(self, view: View, now_s: float) -> Plan | None:
        if not self.someone_drains():
            return None
        core = self._core
        staying = tuple(m for m in view.members if core.peers[m.incarnation].drain_cut_s is None)
        return self._held(Kind.LEAVE, view, staying, now_s)

    def _reorder(self, view: View, now_s: float) -> Plan | None:
        """Plans other ranks if they keep more of the pairs apart that the links' judge names."""
        apart = self._core.apart
        if not apart:
            return None
        by_incarnation = {m.incarnation: m for m in view.members}
        order: list[int] = []
        for _, group in groupby(view.members, key=lambda m: m.group):
            ring = list(group)
            seated = any(m.seat for m in ring)  # their programs count on these ranks
            in_a_row = [m.incarnation for m in ring]
            order += in_a_row if seated else keep_apart(in_a_row, apart)
        members = tuple(by_incarnation[i] for i in order)
        return None if members == view.members else self._held(Kind.REORDER, view, members, now_s)

    def _held(self, kind: Kind, view: View, members: tuple[Member, ...], now_s: float) -> Plan:
        """Returns a plan that needs no new links."""
        core = self._core
        return Plan(
            kind=kind,
            view=View(core.new_epoch(), members),
            name=ANY_NAME,
            base=view.incarnations(),
            deadline_s=now_s + core.config.hold_timeout_s,
            phase=Phase.HOLD,
        )

    # -------------------------------------------------------------- newcomers

    def _is_learner(self, peer: Peer) -> bool:
        if self._core.is_member(peer.incarnation) or not peer.present():
            return False
        if peer.out or peer.drain_cut_s is not None:
            return False
        return peer.agent is not None and peer.native is not None

    def _is_entering(self, peer: Peer, now_s: float) -> bool:
        if peer.entry is None:
            return False
        fresh_s = max(8 * self._core.config.profile.heartbeat_s, 1.0)  # repeated every heartbeat
        return now_s < peer.entry_seen_s + fresh_s and self._is_learner(peer)

    def _ready(self, peers: list[Peer], now_s: float) -> tuple[list[Peer], list[float]]:
        """Returns who may be planned in, and when others may: not right after links failed, and
        later and later if they are lost again and again."""
        flaps = None if self._core.view is None else self._core.flaps
        ready: list[Peer] = []
        times: list[float] = []
        for peer in peers:
            flaps_s = 0.0 if flaps is None else flaps.ready_s(peer.peer_id)
            at_s = max(peer.plan_retry_s, peer.entry_retry_s, flaps_s)
            if now_s >= at_s:
                ready.append(peer)
            else:
                times.append(at_s)
        return ready, times

    def _warm(self, view: View, times: list[float], now_s: float) -> Plan | None:
        """Plans links to learners that have not come to an entry, if any has none so far."""
        core = self._core
        known = [p for p in core.peers.values() if self._is_learner(p) and p.entry is None]
        learners, later = self._ready(known, now_s)
        cold = [p for p in learners if p.warm_epoch != view.epoch]
        due = [p.admitted_s + core.config.warm_after_s for p in cold]
        if not due or now_s < min(due):
            times += due + later
            return None
        return self._with_newcomers(view.members, learners, now_s, Kind.WARM)

    def _first(self, ready: list[Peer], now_s: float) -> tuple[Plan | None, float | None]:
        """Plans the first view, or says when to look again."""
        core = self._core
        group = self._enough(ready)
        if group is None:
            return None, None
        settled_s = group[0].entry_since_s + core.config.profile.initial_settle_s
        everybody = sum(p.present() for p in core.peers.values())
        if len(group) < everybody and now_s < settled_s:
            return None, settled_s
        opinion_s = self._opinion_due_s(ready, now_s)
        if opinion_s is not None:
            return None, opinion_s
        return self._with_newcomers((), group, now_s), None

    def _opinion_due_s(self, ready: list[Peer], now_s: float) -> float | None:
        """Returns until when the first view waits for who will decide a rule when its engine is
        there, which may be slow; strangers, which have none, delay the start only so long."""
        core = self._core
        late = [p for p in core.peers.values() if p.agent is not None and rules.may_decide(core, p)]
        times = [p.admitted_s + ENGINE_DUE_S for p in late]
        most_s = min(p.entry_since_s for p in ready) + ENGINE_DUE_S
        due_s = min(max(times, default=now_s), most_s)
        return due_s if now_s < due_s else None

    def _enough(self, ready: list[Peer]) -> list[Peer] | None:
        """Returns those who wait at one entry and are enough to begin, who came first before."""
        by_name: dict[str, list[Peer]] = {}
        for peer in sorted(ready, key=lambda p: (p.entry_since_s, p.incarnation)):
            by_name.setdefault(peer.entry or "", []).append(peer)
        enough = (g for g in by_name.values() if len(g) >= self._core.effective_min_world())
        return next(enough, None)

    def _join(self, view: View, ready: list[Peer], now_s: float) -> Plan | None:
        core = self._core
        names = {p.entry for p in core.members() if p.entry is not None}
        here = [p for p in ready if p.entry in names]
        # Members of a paused view stand at an entry themselves; who waits at the same one comes
        # first.  For others the members run on, below min_world, to where those can come in.
        # Names are served in turn: one whose plans come to nothing keeps no other waiting.
        first = min(here or ready, key=lambda p: (p.planned_s, p.entry_since_s, p.incarnation))
        group = [p for p in ready if p.entry == first.entry]
        if len(view.members) + len(group) < core.floor():
            return None  # still too few to run a step: more must come
        return self._with_newcomers(view.members, group, now_s)

    def _with_newcomers(
        self, base: tuple[Member, ...], group: list[Peer], now_s: float, kind: Kind = Kind.JOIN
    ) -> Plan | None:
        core = self._core
        group = sorted(group, key=lambda p: p.incarnation)[: MEMBERS_MAX - len(base)]
        if kind is Kind.JOIN:
            group = whole(core.view, group)  # of one that has room for a part, no part comes in
        if not group:
            return None
        first_step = FIRST_STEP_UNKNOWN if base else 0
        members = in_order((*base, *(p.member(first_step) for p in group)))
        return Plan(
            kind=kind,
            view=View(core.new_epoch(), members),
            name=group[0].entry or ANY_NAME,
            base=tuple(m.incarnation for m in base),
            candidates=tuple(p.incarnation for p in group),
            deadline_s=now_s + core.config.profile.links_timeout_s,
        )


def in_order(members: Sequence[Member]) -> tuple[Member, ...]:
    """Returns members in rank order: group by group, and within one by seat, and as they came."""
    return tuple(sorted(members, key=lambda m: (m.group, m.seat == 0, m.seat)))
