"""Planned view changes: members come, go and change places, and nothing is aborted.

    idle --newcomers--> LINKS --all links up--> HOLD --all members hold--> activation (durable)
      |                   |                      |            --all have switched--> over
      +--leave, reorder---+----------------------+
                          +-- failure or time: cancel, plan again without those to blame

The first view of a run takes the same path up to LINKS and is then installed at once: nobody runs.

While links open in the background nobody promises anything.  Then members, and only they, promise
to start no step from some number on until they hear more: one round trip, cut short by a deadline.
The greatest of these numbers, S, is made durable with the view, so no coordinator can ever name
another, and whoever starts the first step >= S with the joiners' entry name starts it in the new
view (a leave or a reordering: the step S).  Programs run the same steps in the same order, so that
is the same step everywhere.

Invariants: one plan at a time; only members that have installed the current view are asked to
hold; a leave comes before a plan that is still opening links.
"""

from __future__ import annotations

from collections.abc import Sequence

from pccl.membership import rules
from pccl.membership.choosing import Choosing
from pccl.membership.core import Core, Peer, name
from pccl.membership.entering import Entering
from pccl.membership.messages import CancelPlan, Hold, ViewPlan
from pccl.membership.plan import Kind, Phase, Plan
from pccl.membership.record import Activation, InstallNote


class Planning:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._choosing = Choosing(core)
        self._entering = Entering(core)
        self._plan: Plan | None = None
        self._warm: Plan | None = None  # its links are up; its newcomers are not at an entry
        self._not_before_s = 0.0  # after a plan that members could not follow
        self.deadline_s: float | None = None

    def describe(self) -> str:
        plan, entering = self._plan, self._core.activation
        if plan is not None:
            return f"{plan.kind.value}: {plan.phase.value} for epoch {plan.view.epoch}"
        return "none" if entering is None else f"activated epoch {entering.view.epoch}"

    # -------------------------------------------------------------- events

    def at_entry(self, peer: Peer, entry: str, now_s: float) -> None:
        peer.comes_to(entry, now_s)

    def links_up(self, peer: Peer, epoch: int) -> None:
        plan = self._plan
        if plan is not None and plan.view.epoch == epoch and peer.incarnation in plan:
            plan.up.add(peer.incarnation)

    def links_failed(self, peer: Peer, epoch: int, peer_ids: Sequence[bytes], now_s: float) -> None:
        """Drops from the plan who cannot be reached; members are never dropped by a plan."""
        plan = self._plan
        if plan is None or plan.view.epoch != epoch or peer.incarnation not in plan:
            return
        if not plan.candidates:
            return
        plan.up.discard(peer.incarnation)  # it may have lost a link that was up
        by_id = {m.peer_id: m.incarnation for m in plan.view.members}
        for accused in (by_id[i] for i in peer_ids if i in by_id):
            for end in (peer.incarnation, accused):
                plan.edges[end] = plan.edges.get(end, 0) + 1
        blamed = max(plan.candidates, key=lambda i: (plan.edges.get(i, 0), i))
        if plan.edges.get(blamed, 0) > 0:  # else two members fail each other: not the plan's fault
            self._cancel("links failed", now_s, late=(blamed,))

    def hold_from(self, peer: Peer, epoch: int, step: int, within: int) -> None:
        plan = self._plan
        if plan is None or plan.view.epoch != epoch or plan.phase is not Phase.HOLD:
            return
        if peer.incarnation in plan.base:
            plan.holds[peer.incarnation] = step
            plan.within = max(plan.within, within)

    def switched(self, peer: Peer, epoch: int, step: int, now_s: float) -> None:
        self._entering.switched(peer, epoch, step, now_s)

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
            holding = plan.phase is not Phase.LINKS
            if plan.candidates and (holding or peer.incarnation not in plan.up):
                core.send(peer, ViewPlan(core.generation, plan.view.epoch, plan.view.infos()))
            if holding and peer.incarnation in plan.base:
                core.send(peer, Hold(core.generation, plan.view.epoch, plan.name))

    def tell_all(self) -> None:
        """Says what could not be said while witnesses were due."""
        for peer in list(self._core.peers.values()):
            self.reattached(peer)
        self._entering.tell_again()

    def reattached(self, peer: Peer) -> None:
        """A peer that was away may hold for a plan that is over; this releases it."""
        core = self._core
        if not core.flushing and (self._plan is None or peer.incarnation not in self._plan):
            entering, below = core.activation, core.epoch_high
            # Who runs in the activated view already holds for a later one, if for any.
            if entering is not None and peer.epoch < entering.view.epoch:
                below = entering.view.epoch - 1
            core.send(peer, CancelPlan(core.generation, below))
        self.repeat(peer)

    # -------------------------------------------------------------- time

    def advance(self, now_s: float) -> None:
        core = self._core
        if core.flushing:
            self.deadline_s = None
            self._entering.forget()
            if self._plan is not None:
                self._cancel("a flush comes first", now_s)
            return
        if core.witnesses_due:
            self.deadline_s = None
            return
        if self._plan is not None:
            self._follow(self._plan, now_s)
        self._entering.complete(now_s)
        if self._plan is None and core.activation is None:
            self._consider(now_s)
        else:
            self.deadline_s = (
                self._entering.deadline_s if self._plan is None else self._plan.deadline_s
            )

    def _follow(self, plan: Plan, now_s: float) -> None:
        core = self._core
        base = () if core.view is None else core.view.incarnations()
        if plan.base != base or any(i not in core.peers for i in plan.candidates):
            self._cancel("the peers have changed", now_s)
        elif plan.phase is Phase.LINKS and self._choosing.someone_drains():
            self._cancel("a member leaves first", now_s)
        elif plan.kind is Kind.WARM and self._is_overtaken(plan, now_s):
            self._cancel("somebody comes in first", now_s)
        elif plan.phase is Phase.LINKS:
            if all(i in plan.up for i in plan.view.incarnations()):
                self._links_are_up(plan, now_s)
            elif now_s >= plan.deadline_s:
                self._links_are_late(plan, now_s)
        else:
            if all(i in plan.holds for i in plan.base):
                self._all_hold(plan, now_s)
            elif now_s >= plan.deadline_s:
                self._not_before_s = now_s + core.config.plan_backoff_s
                self._cancel("a member did not hold in time", now_s)

    def _is_overtaken(self, plan: Plan, now_s: float) -> bool:
        """Makes a join of a plan to warm newcomers up once all are at one entry; says whether some
        newcomer comes in without the others."""
        entering = self._choosing.entering(now_s)
        names = {p.entry for p in entering}
        if len(names) == 1 and {p.incarnation for p in entering} == set(plan.candidates):
            plan.kind, plan.name = Kind.JOIN, names.pop() or ""
            return False
        return bool(entering)

    def _links_are_up(self, plan: Plan, now_s: float) -> None:
        if plan.kind is Kind.WARM:
            self._plan, self._warm = None, plan
            for i in plan.candidates:
                self._core.peers[i].warm_epoch = self._core.epoch()
            return
        if not plan.base:
            self._plan = None
            self._install_first(plan, now_s)
            return
        plan.phase = Phase.HOLD
        plan.deadline_s = now_s + self._core.config.hold_timeout_s
        self._ask_to_hold(plan)

    def _ask_to_hold(self, plan: Plan) -> None:
        core = self._core
        for i in plan.base:
            core.send(core.peers[i], Hold(core.generation, plan.view.epoch, plan.name))

    def _links_are_late(self, plan: Plan, now_s: float) -> None:
        core = self._core
        late = tuple(i for i in plan.candidates if i not in plan.up)
        if late:
            self._cancel("links are not up in time", now_s, late=late)
            return
        # Only members are late: their programs are busy, or a link that was up at its other end is
        # so no more.  Nothing was promised, but newcomers wait: a plan anew dials anew.
        if plan.renewed:
            self._not_before_s = now_s + core.config.plan_backoff_s
            self._cancel("members' links are not up in time", now_s)
            return
        plan.renewed = True
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
        for i in plan.everybody():
            if (known := core.peers.get(i)) is not None:
                core.send(known, CancelPlan(core.generation, plan.view.epoch))

    # -------------------------------------------------------------- into force

    def _install_first(self, plan: Plan, now_s: float) -> None:
        core = self._core
        rules.settle(core)
        core.view, core.history = plan.view, ()
        core.note = InstallNote(False, 0, (), ())
        core.carried = ()
        core.counters.views += 1
        core.persist()
        core.installed_s = now_s
        core.became_members(plan.candidates)
        for peer in core.members():
            core.send(peer, core.install_message(core.view, core.note))
        core.log(
            "info", f"epoch {plan.view.epoch}: first view with {len(plan.view.members)} members"
        )

    def _all_hold(self, plan: Plan, now_s: float) -> None:
        core = self._core
        # The members of a paused view stand still: only by going on they may come to the name.
        short = core.view is not None and core.is_short(core.view)
        if plan.kind is Kind.JOIN and plan.within == 0 and not short:
            self._cancel(core.turn_back(plan.candidates), now_s)
            return
        self._plan = None
        activation = Activation(
            plan.view, plan.step(), plan.name, False, 0, plan.expected_below() if plan.name else 0
        )
        self._entering.begin(activation, plan.base)

    # -------------------------------------------------------------- what comes next

    def _consider(self, now_s: float) -> None:
        core = self._core
        self.deadline_s = None
        if not self._choosing.members_can_follow() or not self._entering.has_room():
            return
        if now_s < self._not_before_s:
            self.deadline_s = self._not_before_s
            return
        plan, self.deadline_s = self._choosing.next_plan(now_s)
        if plan is None:
            return
        plan = self._prepared(plan, now_s)
        self._plan = plan
        if plan.kind is Kind.JOIN:
            for i in plan.candidates:
                core.peers[i].planned_s = now_s
        self.deadline_s = plan.deadline_s
        if plan.phase is Phase.HOLD:
            self._ask_to_hold(plan)
        else:
            self._warm = None
            message = ViewPlan(core.generation, plan.view.epoch, plan.view.infos())
            for i in plan.view.incarnations():
                core.send(core.peers[i], message)
        moving = [core.peers[i] for i in plan.candidates] or [
            core.peers[i] for i in plan.base if i not in plan.view
        ]
        who = ", ".join(name(p) for p in moving[:8]) or "another order"
        core.log("info", f"plan for epoch {plan.view.epoch}: {plan.kind.value} of {who}")

    def _prepared(self, plan: Plan, now_s: float) -> Plan:
        """Returns the plan to follow: with links that are up already, its newcomers need only that
        the members hold."""
        warm = self._warm
        same = warm is not None and plan.kind is Kind.JOIN and warm.base == plan.base
        # A flush that lost nobody, or two reorderings, leave the base as it was, and its epoch old.
        same = same and warm is not None and warm.view.epoch > self._core.epoch()
        if warm is None or not same or set(warm.candidates) != set(plan.candidates):
            return plan
        self._warm = None
        warm.kind, warm.name, warm.phase = Kind.JOIN, plan.name, Phase.HOLD
        warm.deadline_s = now_s + self._core.config.hold_timeout_s
        return warm
