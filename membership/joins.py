"""Planned view changes: newcomers come in and abort nothing.

    idle --candidates--> LINKS --all links up--> HOLD --all members hold--> activation (durable)
                           |                      |            --first Switched--> joiners installed
                           +-- failure or time: cancel, plan again without those to blame

The first view of a run takes the same path up to LINKS and is then installed at once: nobody runs.

While links open in the background nobody promises anything.  Then members, and only they, promise
to start no step from some number on until they hear more: one round trip, cut short by a deadline.
The greatest of these numbers, S, is made durable with the view, so no coordinator can ever name
another, and whoever starts the first step >= S with the joiners' entry name starts it in the new
view.  Programs run the same steps in the same order, so that is the same step everywhere.

Invariants: one plan at a time; only members that have installed the current view are asked to
hold; an activated plan is taken back by a flush and by nothing else; a view is forgotten only when
every member's watermark says that no step of it is open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from pccl.membership.core import Core, Peer, name
from pccl.membership.messages import (
    MEMBERS_MAX,
    CancelPlan,
    Hold,
    ViewPlan,
)
from pccl.membership.record import VIEWS_MAX, Activation, InstallNote
from pccl.membership.view import FIRST_STEP_UNKNOWN, Member, View


class _Phase(Enum):
    LINKS = auto()
    HOLD = auto()


@dataclass(slots=True)
class _Plan:
    view: View
    name: str
    base: tuple[int, ...]  # members of the view in force; none for the first view
    candidates: tuple[int, ...]
    deadline_s: float
    phase: _Phase = _Phase.LINKS
    up: set[int] = field(default_factory=set)
    holds: dict[int, int] = field(default_factory=dict)
    edges: dict[int, int] = field(default_factory=dict)  # failed links per candidate

    def __contains__(self, incarnation: int) -> bool:
        return incarnation in self.view


class Joins:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._plan: _Plan | None = None
        self._switched: set[int] = set()
        self._not_before_s = 0.0  # after a plan that members could not follow
        self.deadline_s: float | None = None

    def describe(self) -> str:
        if self._plan is not None:
            return f"{self._plan.phase.name.lower()} for epoch {self._plan.view.epoch}"
        entering = self._core.activation
        return "none" if entering is None else f"activated epoch {entering.view.epoch}"

    # -------------------------------------------------------------- events

    def at_entry(self, peer: Peer, entry: str, now_s: float) -> None:
        if peer.entry != entry:
            peer.entry, peer.entry_since_s = entry, now_s
        peer.entry_seen_s = now_s

    def links_up(self, peer: Peer, epoch: int) -> None:
        plan = self._plan
        if plan is not None and plan.view.epoch == epoch and peer.incarnation in plan:
            plan.up.add(peer.incarnation)

    def links_failed(self, peer: Peer, epoch: int, peer_ids: Sequence[bytes], now_s: float) -> None:
        """Drops from the plan who cannot be reached; members are never dropped by a plan."""
        plan = self._plan
        if plan is None or plan.view.epoch != epoch or peer.incarnation not in plan:
            return
        by_id = {m.peer_id: m.incarnation for m in plan.view.members}
        for accused in (by_id[i] for i in peer_ids if i in by_id):
            for end in (peer.incarnation, accused):
                plan.edges[end] = plan.edges.get(end, 0) + 1
        blamed = max(plan.candidates, key=lambda i: (plan.edges.get(i, 0), i))
        if plan.edges.get(blamed, 0) > 0:  # else two members fail each other: not the plan's fault
            self._cancel("links failed", now_s, late=(blamed,))

    def hold_from(self, peer: Peer, epoch: int, step: int) -> None:
        plan = self._plan
        if plan is None or plan.view.epoch != epoch or plan.phase is not _Phase.HOLD:
            return
        if peer.incarnation in plan.base:
            plan.holds[peer.incarnation] = step

    def switched(self, peer: Peer, epoch: int, step: int, now_s: float) -> None:
        core, entering = self._core, self._core.activation
        if entering is None or core.view is None or core.flushing:
            return
        if entering.view.epoch != epoch or peer.incarnation not in core.view:
            return
        peer.epoch = max(peer.epoch, epoch)
        if not entering.resolved:
            if step < entering.step:
                core.lose(peer, f"it entered epoch {epoch} at step {step}, before {entering.step}")
                return
            self._resolve(entering, step, now_s)
        elif step != entering.first_step:
            text = f"it entered epoch {epoch} at step {step}, others at {entering.first_step}"
            core.lose(peer, text)
            return
        if peer.incarnation not in self._switched:
            self._switched.add(peer.incarnation)
            core.send_entered(peer)

    def repeat(self, peer: Peer) -> None:
        """Tells a peer (again) what it is asked to do."""
        core, plan = self._core, self._plan
        if core.flushing:
            return
        if core.view is not None and (
            peer.incarnation in core.view or core.is_member(peer.incarnation)
        ):
            core.send_view(peer)
        if plan is not None and peer.incarnation in plan:
            if peer.incarnation not in plan.up or plan.phase is _Phase.HOLD:
                core.send(peer, ViewPlan(core.generation, plan.view.epoch, plan.view.infos()))
            if plan.phase is _Phase.HOLD and peer.incarnation in plan.base:
                core.send(peer, Hold(core.generation, plan.view.epoch))

    def reattached(self, peer: Peer) -> None:
        """A peer that was away may hold for a plan that is over; this releases it."""
        core = self._core
        if not core.flushing and (self._plan is None or peer.incarnation not in self._plan):
            below = core.epoch_high if core.activation is None else core.activation.view.epoch - 1
            core.send(peer, CancelPlan(core.generation, below))
        self.repeat(peer)

    # -------------------------------------------------------------- time

    def advance(self, now_s: float) -> None:
        core = self._core
        if core.flushing:
            self.deadline_s = None
            self._switched.clear()
            if self._plan is not None:
                self._cancel("a flush comes first", now_s)
            return
        if self._plan is not None:
            self._follow(self._plan, now_s)
        if core.activation is not None:
            self._complete(core.activation)
        if self._plan is None and core.activation is None:
            self._consider(now_s)
        elif self._plan is not None:
            self.deadline_s = self._plan.deadline_s
        else:
            self.deadline_s = None

    def _follow(self, plan: _Plan, now_s: float) -> None:
        core = self._core
        base = () if core.view is None else core.view.incarnations()
        if plan.base != base or any(i not in core.peers for i in plan.candidates):
            self._cancel("the peers have changed", now_s)
            return
        if plan.phase is _Phase.LINKS:
            if all(i in plan.up for i in plan.view.incarnations()):
                self._links_are_up(plan, now_s)
            elif now_s >= plan.deadline_s:
                self._links_are_late(plan, now_s)
        elif all(i in plan.holds for i in plan.base):
            self._activate(plan)
        elif now_s >= plan.deadline_s:
            self._not_before_s = now_s + core.config.plan_backoff_s
            self._cancel("a member did not hold in time", now_s)

    def _links_are_up(self, plan: _Plan, now_s: float) -> None:
        core = self._core
        if not plan.base:
            self._plan = None
            self._install_first(plan, now_s)
            return
        plan.phase = _Phase.HOLD
        plan.deadline_s = now_s + core.config.hold_timeout_s
        for i in plan.base:
            core.send(core.peers[i], Hold(core.generation, plan.view.epoch))

    def _links_are_late(self, plan: _Plan, now_s: float) -> None:
        core = self._core
        late = tuple(i for i in plan.candidates if i not in plan.up)
        if late:
            self._cancel("links are not up in time", now_s, late=late)
            return
        # Only members are late: their programs are busy.  Nothing was promised, so nobody waits.
        plan.deadline_s = now_s + core.config.profile.links_timeout_s
        for i in plan.base:
            self.repeat(core.peers[i])

    def _cancel(self, why: str, now_s: float, late: Sequence[int] = ()) -> None:
        core, plan = self._core, self._plan
        assert plan is not None
        self._plan = None
        core.log("info", f"plan for epoch {plan.view.epoch} cancelled: {why}")
        for i in late:
            peer = core.peers[i]  # a candidate that is gone cancels the plan before
            base_s, most_s = core.config.plan_backoff_s, core.config.plan_backoff_max_s
            peer.plan_backoff_s = min(max(base_s, 2 * peer.plan_backoff_s), most_s)
            peer.plan_retry_s = now_s + peer.plan_backoff_s
        for i in plan.view.incarnations():
            if (known := core.peers.get(i)) is not None:
                core.send(known, CancelPlan(core.generation, plan.view.epoch))

    # -------------------------------------------------------------- into force

    def _install_first(self, plan: _Plan, now_s: float) -> None:
        core = self._core
        core.view, core.history = plan.view, ()
        core.note = InstallNote(False, 0, (), ())
        core.carried = ()
        core.counters.views += 1
        core.persist()
        core.installed_s = now_s
        for peer in core.members():
            peer.entry, peer.plan_backoff_s = None, 0.0
            core.send(peer, core.install_message(core.view, core.note))
        core.log(
            "info", f"epoch {plan.view.epoch}: first view with {len(plan.view.members)} members"
        )

    def _activate(self, plan: _Plan) -> None:
        core = self._core
        self._plan = None
        self._switched.clear()
        step = max(plan.holds.values())
        core.activation = Activation(plan.view, step, plan.name, resolved=False, first_step=0)
        core.persist()
        message = core.activate_message(core.activation)
        for i in plan.base:
            core.send(core.peers[i], message)
        core.log(
            "info", f"epoch {plan.view.epoch} begins at the first '{plan.name}' from {step} on"
        )

    def _resolve(self, entering: Activation, step: int, now_s: float) -> None:
        core = self._core
        joiners = core.joiners()
        view = entering.view.with_first_step(joiners, step)
        core.activation = replace(entering, view=view, resolved=True, first_step=step)
        core.counters.views += 1
        core.counters.joins += len(joiners)
        core.persist()
        core.installed_s = now_s
        for i in joiners:
            peer = core.peers[i]
            peer.entry, peer.plan_backoff_s = None, 0.0
            core.send_entered(peer)
        core.log("info", f"epoch {view.epoch}: {len(joiners)} joined at step {step}")

    def _complete(self, entering: Activation) -> None:
        """Forgets the older view's being in force once every member has entered the newer one."""
        core = self._core
        assert core.view is not None
        if not entering.resolved:
            return
        epoch = entering.view.epoch
        if all(core.peers[i].epoch >= epoch for i in core.view.incarnations()):
            core.history = (*core.history, core.view)
            core.view, core.activation = entering.view, None
            core.note = InstallNote(False, core.note.committed_below, (), ())

    def _has_room(self) -> bool:
        """Forgets the views in which no member can have an open step any more, and says whether
        another one may be planned."""
        core = self._core
        if core.view is None or not core.history:
            return True
        decided_below = min(p.watermark for p in core.members())
        later = (*core.history[1:], core.view)
        core.history = tuple(
            view
            for view, successor in zip(core.history, later, strict=True)
            if successor.begins_at() > decided_below
        )
        return len(core.history) + 2 <= VIEWS_MAX

    # -------------------------------------------------------------- who comes in next

    def _consider(self, now_s: float) -> None:
        core = self._core
        self.deadline_s = None
        waiting = [p for p in core.peers.values() if self._is_candidate(p, now_s)]
        if not waiting or not self._members_can_follow() or not self._has_room():
            return
        ready = [p for p in waiting if now_s >= p.plan_retry_s]
        times = [p.plan_retry_s for p in waiting if p.plan_retry_s > now_s]
        if now_s < self._not_before_s:
            times.append(self._not_before_s)
        elif core.view is None:
            settled_s = self._consider_first(ready, now_s)
            times += [] if settled_s is None else [settled_s]
        elif ready:
            self._consider_join(core.view, ready, now_s)
        if self._plan is not None:
            self.deadline_s = self._plan.deadline_s
        else:
            self.deadline_s = min(times, default=None)

    def _is_candidate(self, peer: Peer, now_s: float) -> bool:
        if peer.entry is None or not peer.present() or self._core.is_member(peer.incarnation):
            return False
        fresh_s = max(8 * self._core.config.profile.heartbeat_s, 1.0)  # repeated every heartbeat
        attached = peer.agent is not None and peer.native is not None
        return attached and now_s < peer.entry_seen_s + fresh_s

    def _members_can_follow(self) -> bool:
        core = self._core
        view = core.view
        return view is None or all(
            p.present() and p.agent is not None and not p.silent and p.epoch >= view.epoch
            for p in core.members()
        )

    def _consider_first(self, ready: list[Peer], now_s: float) -> float | None:
        """Plans the first view, or returns when to look again."""
        core = self._core
        by_name: dict[str, list[Peer]] = {}
        for peer in sorted(ready, key=lambda p: (p.entry_since_s, p.incarnation)):
            by_name.setdefault(peer.entry or "", []).append(peer)
        enough = [g for g in by_name.values() if len(g) >= core.effective_min_world()]
        if not enough:
            return None
        group = enough[0]
        settled_s = group[0].entry_since_s + core.config.profile.initial_settle_s
        everybody = sum(p.present() for p in core.peers.values())
        if len(group) < everybody and now_s < settled_s:
            return settled_s
        self._propose((), group, now_s)
        return None

    def _consider_join(self, view: View, ready: list[Peer], now_s: float) -> None:
        core = self._core
        names = {p.entry for p in core.members() if p.entry is not None}
        here = [p for p in ready if p.entry in names]
        # Members of a paused view stand at an entry themselves; who waits at the same one comes
        # first.  For others the members run on, below min_world, to where those can come in.
        first = min(here or ready, key=lambda p: (p.entry_since_s, p.incarnation))
        entry = first.entry
        group = [p for p in ready if p.entry == entry]
        if not group or len(view.members) + len(group) < core.effective_min_world():
            return  # still too few to run a step: more must come
        self._propose(view.members, group, now_s)

    def _propose(self, base: tuple[Member, ...], group: list[Peer], now_s: float) -> None:
        core = self._core
        group = sorted(group, key=lambda p: p.incarnation)[: MEMBERS_MAX - len(base)]
        if not group:
            return
        first_step = FIRST_STEP_UNKNOWN if base else 0
        view = View(core.new_epoch(), (*base, *(p.member(first_step) for p in group)))
        plan = _Plan(
            view=view,
            name=group[0].entry or "",
            base=tuple(m.incarnation for m in base),
            candidates=tuple(p.incarnation for p in group),
            deadline_s=now_s + core.config.profile.links_timeout_s,
        )
        self._plan = plan
        message = ViewPlan(core.generation, view.epoch, view.infos())
        for i in view.incarnations():
            core.send(core.peers[i], message)
        names = ", ".join(name(p) for p in group[:8])
        core.log("info", f"plan for epoch {view.epoch}: {len(base)} members and {names}")
