"""An activated plan, until every member runs in its view.

The activation is durable, so no coordinator can name another step for its epoch.  A join is
*resolved* by the first Switched, which says where the joiners come in; the members then are those
of the new view.  A leave and a reordering have no name to wait for: members switch at the step
itself, and they are over when all have switched and, for a leave, nobody has a step of the older
view open any more.  Until then the leavers are members, for the others need them.

A join that nobody resolves has an end, too: once the members are well past where they were
expected to come to its name, or when one of them must be planned out before its time is over, it is
taken back by a flush that keeps everybody.

Invariants: an activation is taken back by a flush and by nothing else; a view is forgotten only
when every member's watermark says that no step of it is open.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from pccl.membership.core import Core, Peer, name
from pccl.membership.messages import Underflow
from pccl.membership.record import ANY_NAME, VIEWS_MAX, Activation, InstallNote


class Entering:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._switched: set[int] = set()
        self._first: int | None = None  # the step at which the first member switched
        self._since_s: float | None = None  # that the members may come to the name
        self.deadline_s: float | None = None

    def begin(self, activation: Activation, to: tuple[int, ...]) -> None:
        """Makes an activation durable and tells the members."""
        core = self._core
        self.forget()
        core.activation = activation
        core.persist()
        message = core.activate_message(activation)
        for incarnation in to:
            core.send(core.peers[incarnation], message)
        entry = "" if activation.name == ANY_NAME else f"first '{activation.name}' from "
        core.log("info", f"epoch {activation.view.epoch} begins at {entry}step {activation.step}")

    def forget(self) -> None:
        self._switched.clear()
        self._first = self._since_s = self.deadline_s = None

    def switched(self, peer: Peer, epoch: int, step: int, now_s: float) -> None:
        core, entering = self._core, self._core.activation
        if entering is None or core.view is None or core.flushing:
            return
        if entering.view.epoch != epoch or peer.incarnation not in core.view:
            return
        if peer.incarnation in core.leavers():
            return
        peer.epoch = max(peer.epoch, epoch)
        if step < entering.step:
            core.lose(peer, f"it entered epoch {epoch} at step {step}, before {entering.step}")
            return
        first = entering.first_step if entering.resolved else self._first
        if first is not None and step != first:
            core.lose(peer, f"it entered epoch {epoch} at step {step}, others at {first}")
            return
        self._first = step
        if entering.name == ANY_NAME:
            return
        if not entering.resolved:
            self._resolve(entering, step, now_s)
        if peer.incarnation not in self._switched:
            self._switched.add(peer.incarnation)
            core.send_entered(peer)

    def tell_again(self) -> None:
        """Tells those that have entered what they were told when they said so."""
        core = self._core
        if core.activation is not None and core.activation.resolved and not core.flushing:
            for peer in [p for i, p in core.peers.items() if i in self._switched]:
                core.send_entered(peer)

    def _resolve(self, entering: Activation, step: int, now_s: float) -> None:
        core = self._core
        joiners = core.joiners()
        view = entering.view.with_first_step(joiners, step)
        core.activation = replace(entering, view=view, resolved=True, first_step=step)
        core.counters.views += 1
        core.counters.joins += len(joiners)
        core.persist()
        core.installed_s = now_s
        core.became_members(joiners)
        for i in joiners:
            core.send_entered(core.peers[i])
        core.log("info", f"epoch {view.epoch}: {len(joiners)} joined at step {step}")

    def complete(self, now_s: float) -> None:
        """Forgets the older view's being in force once every member has entered the newer one."""
        core, entering = self._core, self._core.activation
        self.deadline_s = None
        if entering is None or core.view is None:
            return
        if entering.name != ANY_NAME and not entering.resolved:
            self._await_first(entering, now_s)
            return
        epoch = entering.view.epoch
        staying = [i for i in core.view.incarnations() if i in entering.view]
        if not all(core.peers[i].epoch >= epoch for i in staying):
            return
        if entering.name == ANY_NAME:
            self._complete_unnamed(entering, now_s)
        else:
            core.history = (*core.history, core.view)
            self._enter(entering)

    def _await_first(self, entering: Activation, now_s: float) -> None:
        """Takes a join back that keeps others waiting: because the members went on and never came
        to the name, or because one of them has to go and would be flushed out otherwise."""
        core = self._core
        self._since_s = now_s if self._since_s is None else self._since_s
        late_s = self._since_s + core.config.profile.enter_timeout_s
        members = [p for p in core.members() if p.here()]
        past = all(p.watermark >= entering.expected_below for p in members)
        hold_s, flush_s = core.config.hold_timeout_s, core.config.profile.flush_timeout_s
        cuts = [p.drain_cut_s for p in members if p.drain_cut_s is not None]
        hurry_s = max(self._since_s + hold_s, min(cuts, default=inf) - flush_s - 2 * hold_s)
        if now_s >= late_s and past:
            core.want_flush(f"a join is taken back: {core.turn_back(core.joiners())}")
        elif now_s >= hurry_s:
            core.want_flush(f"a join is taken back: no time to come to '{entering.name}' any more")
        else:
            times = [t for t in (late_s, hurry_s) if now_s < t < inf]
            self.deadline_s = min(times, default=None)  # else heartbeats say how far they are

    def _complete_unnamed(self, entering: Activation, now_s: float) -> None:
        core = self._core
        assert core.view is not None
        leavers = [core.peers[i] for i in core.leavers()]
        if leavers and not all(p.watermark >= entering.step for p in core.members() if p.here()):
            return
        # Once nobody has a step open in the older view, nothing is left to judge by it.
        core.history = () if leavers else (*core.history, core.view)
        self._enter(entering)
        if not core.view.members:
            core.log("info", "all members have left; the run begins anew with the next first view")
            core.forget_run()
        for peer in leavers:
            peer.entry, peer.out = None, True
            if peer.gone is not None:
                core.peers.pop(peer.incarnation)
        core.counters.views += 1
        core.counters.leaves += len(leavers)
        core.persist()
        core.installed_s = now_s
        gone = ", ".join(name(p) for p in leavers[:8])
        what = f"{gone} left" if leavers else "in another order"
        core.log("info", f"epoch {entering.view.epoch}: {what} at step {entering.step}")

    def _enter(self, entering: Activation) -> None:
        core = self._core
        begins = entering.first_step if entering.resolved else entering.step
        core.view, core.activation = replace(entering.view, begins=begins), None
        short = core.is_short(core.view)
        raises = short and core.underflow() is Underflow.RAISE
        core.note = InstallNote(short, core.note.committed_below, (), (), raises)

    def has_room(self) -> bool:
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
            if successor.begins > decided_below
        )
        return len(core.history) + 2 <= VIEWS_MAX
