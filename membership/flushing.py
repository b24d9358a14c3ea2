"""Unplanned view changes: freeze, ask, decide, make durable, install.

    idle --a reason--> ASKING --all awaited have reported, or time--> decided --> idle, new view

While asking, every member that can still speak is asked again with each of its heartbeats, so no
lost frame matters.  Members that die meanwhile are simply no longer awaited.  Without a single
report nothing can be decided, and only newcomers wait for it.  So it ends when every member is
proven dead, or is given up (`unheard`): the next first view then begins a new lineage.

Before the first FLUSH the record says that a flush is on, so a coordinator that starts in between
knows that members may be frozen, and asks again.

A flush while members leave by a plan: a leaver stays in, and is planned out anew, only if its
program has not gone yet and somebody who stays says that nobody can have gone on without it.  Else
it is left out, and its report is testimony; alone, leavers decide nothing.

Invariants: a view made by a flush consists of reporters only; an epoch that was asked for (the
target) is decided at most once, for `Core.new_epoch` never repeats one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pccl.membership.accusing import SpoiledSteps, put_out
from pccl.membership.core import Core, Peer, name
from pccl.membership.decide import Outcome, decide
from pccl.membership.departures import departed
from pccl.membership.events import Lost
from pccl.membership.mass_loss import Brake
from pccl.membership.messages import CancelPlan, StepOutcome, Underflow
from pccl.membership.record import CarriedDecision, InstallNote
from pccl.membership.underflow import fail_retries, tell_pause, too_few
from pccl.membership.unheard import Unheard
from pccl.membership.view import Member, View
from pccl.transport.native_frames import Flush, Report


@dataclass(slots=True)
class _Asking:
    target: int
    started_s: float
    deadline_s: float
    brake: Brake
    cut_off: bool = False  # nobody could be heard for a whole flush: not the members' fault
    reports: dict[int, Report] = field(default_factory=dict)


class Flushing:
    def __init__(self, core: Core) -> None:
        self._core = core
        self.deadline_s: float | None = None  # None exactly while idle
        self._asking: _Asking | None = None
        self._unheard = Unheard(core)
        self._spoiled = SpoiledSteps()
        # Members of an earlier coordinator have time to come back, and to answer when they are,
        # before a flush goes on without them.
        window_s = core.config.profile.reattach_window_s if core.peers else 0.0
        self._returned_s = core.started_s + window_s
        if core.flushing:
            self._asking = _Asking(core.new_epoch(), core.started_s, self._returned_s, Brake(core))
            self.deadline_s = self._asking.deadline_s

    @property
    def target(self) -> int:
        return 0 if self._asking is None else self._asking.target

    def awaited_names(self) -> list[str]:
        return [] if self._asking is None else [name(p) for p in self._awaited(self._asking, 0.0)]

    # -------------------------------------------------------------- events

    def reported(self, peer: Peer, report: Report, now_s: float) -> None:
        core, asking = self._core, self._asking
        if report.target > core.epoch_high:
            core.counters.dropped_frames += 1
            return
        if asking is None:
            if core.is_member(peer.incarnation) and report.target > core.epoch():
                # It was frozen by a flush this coordinator knows nothing of.
                core.want_flush(f"{name(peer)} is frozen for epoch {report.target}")
            return
        if report.generation != core.generation or report.target != asking.target:
            return
        if asking.cut_off and not self._is_decidable(asking):
            # The first one is back; give the others the time that a flush takes.
            asking.deadline_s = now_s + core.config.profile.flush_timeout_s
        asking.reports.setdefault(peer.incarnation, report)

    def repeat(self, peer: Peer) -> None:
        """Asks a member (again) that has not reported, and tells who is excluded (again)."""
        asking = self._asking
        self._core.send_excluded(peer)
        if asking is None or not self._core.is_member(peer.incarnation):
            return
        missing = peer.gone is None and peer.incarnation not in asking.reports
        if missing and not self._core.is_drained(peer):
            self._core.send_native(peer, Flush(self._core.generation, asking.target))

    def paused(self, duration_s: float) -> None:
        self._returned_s = max(self._returned_s + duration_s, self._core.back_by_s(duration_s))
        if self._asking is not None:
            self._asking.deadline_s += duration_s
            self._asking.brake.paused(duration_s)
            self.deadline_s = self._asking.deadline_s

    # -------------------------------------------------------------- time

    def advance(self, now_s: float) -> None:
        """Starts a flush if there is a reason, and ends it when it can be decided."""
        self._advance(now_s)
        self.deadline_s = None
        if self._asking is not None:
            leave_s = self._core.config.leave_report_s
            leaving = [
                p.leaving_s + leave_s for p in self._core.members() if p.leaving_s is not None
            ]
            times = [t for t in leaving if t > now_s]
            self.deadline_s = min([self._asking.deadline_s, *times])

    def _advance(self, now_s: float) -> None:
        core = self._core
        if core.flush_reasons and self._asking is None:
            if core.current() is None:
                core.flush_reasons.clear()
            else:
                self._start(now_s)
        asking = self._asking
        if asking is None:
            return
        answer_by_s = asking.brake.look(self._returned_s, now_s)
        asking.deadline_s = asking.deadline_s if answer_by_s is None else answer_by_s
        self._pardon(asking, now_s >= asking.deadline_s)
        if not self._stayers():
            self._dissolve()
        elif not self._is_decidable(asking):
            if now_s >= asking.deadline_s:
                why = self._unheard.give_up(self.unheard_s(now_s) or 0.0, now_s)
                if why is not None:
                    self._dissolve(why)
                    return
                asking.cut_off = True
                asking.deadline_s = core.now_s + core.config.profile.flush_timeout_s
        else:
            awaited = self._awaited(asking, now_s)
            late = now_s >= asking.deadline_s
            if late and now_s < self._returned_s and awaited:
                asking.deadline_s = self._returned_s
            elif late and awaited and (by_s := asking.brake.holds_until_s(now_s)) is not None:
                asking.deadline_s = by_s
            elif late or not awaited:
                self._finish(asking, now_s)

    def unheard_s(self, now_s: float) -> float | None:
        """Returns for how long nobody that could decide this flush has been heard; None: it can be
        decided, or there is none."""
        if self._asking is None or self._is_decidable(self._asking):
            return None
        return self._unheard.for_s(self._stayers(), now_s)

    def why_wait(self, now_s: float) -> str | None:
        """Says what newcomers wait for, while nobody is heard who could let them in."""
        unheard_s = self.unheard_s(now_s)
        return None if unheard_s is None else self._unheard.why_wait(unheard_s)

    def why_held(self, now_s: float) -> str | None:
        """Says why this flush waits for longer than others do."""
        return None if self._asking is None else self._asking.brake.why(now_s)

    def _start(self, now_s: float) -> None:
        core = self._core
        target = core.new_epoch()
        # What is judged now may be a moment ago; who is asked has the whole time from now on.
        by_s = core.now_s + core.config.profile.flush_timeout_s
        if core.witnesses_due:  # nobody is asked before
            by_s = max(by_s, self._returned_s)
        self._asking = _Asking(target, now_s, by_s, Brake(core))
        core.counters.flushes += 1
        core.log("info", f"flush to epoch {target}: {'; '.join(core.flush_reasons[:4])}")
        core.flushing = True
        core.persist()
        for peer in core.members():
            self.repeat(peer)

    def _survivors(self) -> list[int]:
        core = self._core
        return [p.incarnation for p in core.members() if p.present() and not core.is_drained(p)]

    def _stayers(self) -> list[int]:
        """Returns the survivors that an activated view keeps: what they committed in it without
        the leavers, no leaver can know."""
        entering, leavers = self._core.activation, self._core.leavers()
        nobody_stays = entering is None or not entering.view.members  # and nobody goes on in it
        return [i for i in self._survivors() if nobody_stays or i not in leavers]

    def _pardon(self, asking: _Asking, late: bool) -> None:
        """Keeps stragglers in without whom too few would be left: others have been lost since."""
        core = self._core
        kept = sum(not late or i in asking.reports for i in self._stayers())
        for peer in core.members():
            if peer.excluding is not None and peer.here() and kept < core.floor():
                core.log("info", f"peer {name(peer)} is needed and stays")
                peer.excluding = None
                kept += 1

    def _is_decidable(self, asking: _Asking) -> bool:
        return any(i in asking.reports for i in self._stayers())

    def _awaited(self, asking: _Asking, now_s: float) -> list[Peer]:
        """Returns the members whose report may still change something."""
        members = [p for p in self._core.members() if p.gone is None]
        silent = [p for p in members if p.silent]
        most = 2 * len(silent) > len(members) or asking.brake.tried
        spare_silent = not most and not asking.cut_off
        leave_s = self._core.config.leave_report_s
        return [
            p
            for p in members
            if p.incarnation not in asking.reports
            and not self._core.is_drained(p)
            and not (p.silent and spare_silent)
            and (p.leaving_s is None or (p.native is not None and now_s < p.leaving_s + leave_s))
        ]

    # -------------------------------------------------------------- the decision

    def _finish(self, asking: _Asking, now_s: float) -> None:
        core = self._core
        reports = {i: asking.reports[i] for i in self._survivors() if i in asking.reports}
        gone_on = departed(core.activation, core.leavers(), reports)
        for leaver in [core.peers[i] for i in core.leavers()]:
            if leaver.gone is None and (leaver.incarnation in gone_on or core.is_drained(leaver)):
                leaver.leaving_s = leaver.leaving_s or now_s
                reports.pop(leaver.incarnation, None)
        if not reports:  # all were to leave, and those left have gone
            self._dissolve()
            return
        witnesses = {
            p.incarnation: asking.reports[p.incarnation]
            for p in core.members()
            if not p.present() and p.gone is None and p.incarnation in asking.reports
        }
        oldest = min(r.epoch for r in reports.values())
        carried = tuple(c for c in core.carried if c.epoch > oldest)
        outcome = decide(
            self._views(),
            reports,
            accusations=core.accusations,
            carried=[c.decision for c in carried],
            corrupt_attempts=self._spoiled.corrupt,
            put_outs=self._spoiled.put_outs,
            witnesses=witnesses,
        )
        if outcome.circular:
            core.log("error", "the reports blame every member; some that they blame stay")
        self._spoiled.count(outcome)
        whys = dict.fromkeys(outcome.minority, "its results differ from the others'")
        whys |= dict.fromkeys(outcome.inconsistent, "its report contradicts the others'")
        for incarnation, why in whys.items():
            core.peers[incarnation].gone = why
            core.effects.append(Lost(core.peers[incarnation].peer_id, why))
        put_out(core, outcome)
        survivors = [i for i in reports if core.peers[i].present()]
        outcome = self._stop_below_floor(self._say_why_late(outcome, carried), survivors)
        self._install(asking, survivors, outcome, carried, now_s)

    def _stop_below_floor(self, outcome: Outcome, kept: list[int]) -> Outcome:
        """With a policy to raise, fails what would be run again by fewer members than it takes."""
        core = self._core
        if len(kept) >= core.floor() or core.underflow() is not Underflow.RAISE:
            return outcome
        gone = [p.peer_id for p in core.members() if p.incarnation not in kept]
        return fail_retries(outcome, too_few(len(kept), core.effective_min_world(), gone))

    def _say_why_late(self, outcome: Outcome, carried: tuple[CarriedDecision, ...]) -> Outcome:
        """In a paused view, says of steps past their deadline that they waited for members."""
        core = self._core
        if core.view is None or not core.is_short(core.view):
            return outcome
        told = tell_pause(outcome, len(core.view.members), core.effective_min_world())
        before = {c.decision.step: c.decision for c in carried}  # and the words of then are final
        return replace(told, decisions=tuple(before.get(d.step, d) for d in told.decisions))

    def _views(self) -> list[View]:
        core = self._core
        assert core.view is not None
        views = [*core.history, core.view]
        return views if core.activation is None else [*views, core.activation.view]

    def _install(
        self,
        asking: _Asking,
        survivors: list[int],
        outcome: Outcome,
        carried: tuple[CarriedDecision, ...],
        now_s: float,
    ) -> None:
        core = self._core
        assert survivors, "a decision keeps at least one reporter"
        target, reported = asking.target, asking.reports
        before = core.members()
        current = core.current()
        assert current is not None
        kept: tuple[Member, ...] = tuple(
            m for m in current.members if m.incarnation in set(survivors)
        )
        out = [p for p in before if p.incarnation not in set(survivors)]
        demoted = [p for p in out if p.excluding is not None and p.incarnation in reported]
        left = [p for p in out if p not in demoted]
        told = {d.step: CarriedDecision(target, d) for d in outcome.decisions}
        final = {c.decision.step: c for c in carried} | told
        joiners = core.joiners() if not self._resolved() else ()
        core.carried = tuple(c for c in final.values() if c.decision.outcome != StepOutcome.RETRY)
        core.view, core.history, core.activation = View(target, kept), (), None
        core.note = InstallNote(
            paused=core.is_short(core.view),
            committed_below=outcome.committed_below,
            decisions=outcome.decisions,
            lost=tuple(p.peer_id for p in out),
            raises=core.is_short(core.view) and core.underflow() is Underflow.RAISE,
        )
        core.counters.views += 1
        for peer in demoted:
            core.counters.exclusions += 1
            core.flaps.lost(peer.peer_id, now_s - peer.member_since_s, now_s)
            peer.excluded_epoch, peer.excluded_text = target, peer.excluding or ""
            peer.excluding = peer.entry = None
        self._end(left)
        for peer in demoted:
            core.send_excluded(peer)
        for peer in core.members():
            peer.entry = None  # what it waits for now, it says again
            core.send(peer, core.install_message(core.view, core.note))
        for incarnation in joiners:
            if (joiner := core.peers.get(incarnation)) is not None:
                core.send(joiner, CancelPlan(core.generation, core.epoch_high))
        core.installed_s = now_s
        retried = sum(d.outcome == StepOutcome.RETRY for d in outcome.decisions)
        core.log(
            "info",
            f"epoch {target}: {len(kept)} members{' (paused)' if core.note.paused else ''}, "
            f"{len(left)} left, {retried} of {len(outcome.decisions)} open steps run again",
        )

    def _resolved(self) -> bool:
        return self._core.activation is not None and self._core.activation.resolved

    def _dissolve(self, why: str | None = None) -> None:
        """Nobody is left who holds the state of the run."""
        core = self._core
        left = core.members()
        for peer in left:
            if peer.present():
                peer.gone = why or (
                    "those who were to stay are gone, and with them what they decided last"
                )
                core.effects.append(Lost(peer.peer_id, peer.gone))
        text = "no member is left" if why is None else f"epoch {core.epoch()} is {why}"
        core.log("warning", f"{text}; the run begins anew with the next first view")
        joiners = core.joiners() if not self._resolved() else ()
        core.forget_run()
        self._spoiled = SpoiledSteps()
        self._end(left)
        for incarnation in joiners:
            if (joiner := core.peers.get(incarnation)) is not None:
                core.send(joiner, CancelPlan(core.generation, core.epoch_high))

    def _end(self, left: list[Peer]) -> None:
        """Makes the new state durable, then sends away who is no longer part of it."""
        core = self._core
        self._asking = None
        core.flushing = core.adopted = False
        core.flush_reasons.clear()
        core.accusations.clear()
        for peer in left:
            core.peers.pop(peer.incarnation)
        core.persist()
        for peer in left:
            if peer.leaving_s is not None:
                text = "left the run"
            else:
                core.counters.evictions += 1
                core.flaps.lost(peer.peer_id, core.now_s - peer.member_since_s, core.now_s)
                silent_s = core.now_s - peer.last_beat_s
                why = f"no answer in time, heard last {silent_s:.1f} s ago; the run went on"
                text = f"{peer.gone or why}; connect again"
            core.farewell(peer, text)
