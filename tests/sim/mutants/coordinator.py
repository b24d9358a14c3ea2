"""Mutants of what the coordinator decides."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from pccl.membership import decide as rule
from pccl.membership import flushing
from pccl.membership.admission import Admission
from pccl.membership.coordinator import Coordinator
from pccl.membership.entering import Entering
from pccl.membership.flushing import Flushing
from pccl.membership.liveness import Liveness
from pccl.membership.mass_loss import Brake
from pccl.membership.messages import StepOutcome
from pccl.membership.plan import Plan
from pccl.membership.planning import Planning
from pccl.membership.progress import Progress
from pccl.membership.unheard import Unheard
from pccl.membership.view import View
from tests.sim.mutants.catalogue import Patches, mutant, of_kind, only
from tests.sim.script import EVER, Fault, Script

DEATHS = only("kill", "crash", "crash_commit", "start")


def a_slow_step_and_a_join(seed: int) -> Script:
    """A step stays open while newcomers come in after it; then who commits it first dies."""
    rng = random.Random(f"{seed} slow join")
    slow_s = rng.uniform(1.0, 2.0)
    return Script(
        seed,
        delay_s=rng.choice((0.01, 0.03)),
        think_s=0.1,
        open_steps=3,
        faults=(
            *(Fault(0.1 * i, "start") for i in range(3)),
            Fault(slow_s - rng.uniform(0.1, 0.5), "start"),
            Fault(slow_s, "slow", a=rng.randrange(3), x=rng.uniform(0.8, 1.5)),
            *(Fault(slow_s + 0.1, "crash_commit", a=a, x=2.0, y=1.0) for a in range(3)),
        ),
    )


def a_slow_step_run_again_after_a_join(seed: int) -> Script:
    """The same, but a death makes the old step run again in the view with the newcomers."""
    script = a_slow_step_and_a_join(seed)
    slow_s = next(f.at_s for f in script.faults if f.kind == "slow")
    kept = [f for f in script.faults if f.kind == "start"]
    faults = (
        *kept,
        Fault(0.4, "start"),
        Fault(slow_s, "slow", a=seed % 3, x=1.6),
        Fault(slow_s + 0.4, "kill", a=3, x=4.0),
        *(Fault(slow_s + 1.2, "crash_commit", a=a, x=2.0) for a in range(4)),
    )
    return replace(script, faults=tuple(sorted(faults)))


@mutant("a flush runs every step again that nobody knows to be committed", DEATHS)
def presumed_abort(p: Patches) -> None:
    def judge(*args: Any) -> Any:
        verdict = before(*args)
        if verdict.decision.outcome == StepOutcome.COMMIT:
            return replace(
                verdict, decision=replace(verdict.decision, outcome=int(StepOutcome.RETRY))
            )
        return verdict

    before = p.set(rule, "_judge", judge)


@mutant(
    "a flush commits a step if one reporter is complete",
    only("kill", "crash", "start", delay_s=0.05),
)
def presumed_commit(p: Patches) -> None:
    def results(by_epoch: Any, held: Any, step: int) -> Any:
        some = {i: o for i, o in held.items() if o is not None and o.complete}
        return before(by_epoch, some, step)

    before = p.set(rule, "_complete_results", results)


@mutant("unequal digests are committed", only("flip", "start"))
def digests_not_compared(p: Patches) -> None:
    def judge(results: Any, step: int, attempts: int) -> Any:
        return rule._Verdict(rule._decision(step, StepOutcome.COMMIT))

    p.set(rule, "_judge_corruption", judge)


@mutant("a flush ends with the first report", only("kill", "start"))
def one_report_is_enough(p: Patches) -> None:
    p.set(Flushing, "_awaited", lambda self, asking, now_s: [])


@mutant(
    "decisions that a member has not installed are forgotten by the next flush",
    only("kill", "crash", "shape", "manifest", "reset_agent", "block_agent", delay_s=0.05),
)
def decisions_not_carried(p: Patches) -> None:
    def decide(*args: Any, **kwargs: Any) -> Any:
        return before(*args, **{**kwargs, "carried": ()})

    before = p.set(flushing, "decide", decide)


@mutant(
    "members that are lost stay in the view that a flush makes",
    only("kill", "crash", "freeze", "start", delay_s=0.05),
)
def lost_members_stay(p: Patches) -> None:
    def survivors(self: Flushing) -> list[int]:
        asking = self._asking
        reported = () if asking is None else asking.reports
        return [p.incarnation for p in self._core.members() if p.incarnation in reported]

    p.set(Flushing, "_survivors", survivors)


@mutant("joiners take part in steps before their first one", a_slow_step_run_again_after_a_join)
def first_step_ignored(p: Patches) -> None:
    p.set(View, "participants", lambda self, step: self.incarnations())


@mutant("a joiner's watermark proves steps before it came", a_slow_step_and_a_join)
def watermark_trusted(p: Patches) -> None:
    def knows(self: Any, incarnation: int, report: Any, step: int) -> bool:
        if rule._open_step(report, step) is not None:
            return False
        return step < report.watermark or step in report.committed

    p.set(rule._Proofs, "_knows", knows)


@mutant("a plan begins at the least of the steps that members hold", of_kind("joins"))
def least_hold(p: Patches) -> None:
    p.set(Plan, "step", lambda self: min(self.holds.values()))


@mutant("a plan does not wait for the members to hold", of_kind("joins", open_steps=3))
def no_hold(p: Patches) -> None:
    def links_are_up(self: Planning, plan: Plan, now_s: float) -> None:
        before(self, plan, now_s)
        if plan.base:
            plan.holds.update({i: self._core.peers[i].next_step for i in plan.base})

    before = p.set(Planning, "_links_are_up", links_are_up)


@mutant("joiners are told their first step before anybody has entered", of_kind("joins"))
def joiners_guess_the_step(p: Patches) -> None:
    def begin(self: Entering, activation: Any, to: Any) -> None:
        before(self, activation, to)
        self._resolve(activation, activation.step, self._core.now_s)

    before = p.set(Entering, "begin", begin)


@mutant("older views are forgotten while steps may be open in them", a_slow_step_and_a_join)
def views_forgotten(p: Patches) -> None:
    def has_room(self: Entering) -> bool:
        self._core.history = ()
        return True

    def complete(self: Entering, now_s: float) -> None:
        before(self, now_s)
        self._core.history = ()

    p.set(Entering, "has_room", has_room)
    before = p.set(Entering, "complete", complete)


@mutant("a new coordinator names epochs that an earlier one may have named")
def epoch_reused(p: Patches) -> None:
    from pccl.membership import coordinator

    def restore(*args: Any) -> Any:
        core = before(*args)
        core.epoch_high = core.epoch()
        return core

    before = p.set(coordinator, "restore", restore)


@mutant("a run without members goes on in the same lineage", only("mass", "kill", "start"))
def lineage_not_raised(p: Patches) -> None:
    def dissolve(self: Flushing) -> None:
        self._core.lineage -= 1
        before(self)

    before = p.set(Flushing, "_dissolve", dissolve)


@mutant("who comes back after its eviction gets no answer", only("stop", "block_peer", "vanish"))
def stale_peers_unanswered(p: Patches) -> None:
    def turn_away(self: Admission, conn: int, answer: Any) -> None:
        return None

    def native_frame(self: Coordinator, conn: int, frame: Any, now_s: float) -> None:
        connection = self._core.conns.get(conn)
        if connection is not None and connection.incarnation is not None:
            known = self._core.peers.get(connection.incarnation)
            if known is None or known.gone is not None:
                return
        before(self, conn, frame, now_s)

    p.set(Admission, "_turn_away", turn_away)
    p.set(Admission, "_refuse_native", lambda self, conn, code, text: None)
    before = p.set(Coordinator, "_native_frame", native_frame)


@mutant("a pause of the coordinator counts as everybody's silence", only("c_stop"))
def pause_not_given_back(p: Patches) -> None:
    p.set(Liveness, "paused", lambda self, duration_s: None)


@mutant("a restarted coordinator gives nobody time to come back", of_kind("coordinator"))
def no_reattach_window(p: Patches) -> None:
    def begin(self: Liveness, core: Any) -> None:
        before(self, core)
        self._leases_not_before_s = core.started_s
        for peer in core.peers.values():
            peer.last_beat_s = core.started_s - core.config.profile.lease_s / 2

    before = p.set(Liveness, "__init__", begin)


@mutant("a lost connection is a death", only("reset_agent", "reset_native", "duplicate"))
def loss_is_death(p: Patches) -> None:
    def lost(self: Liveness, peer: Any, now_s: float) -> None:
        self._core.lose(peer, "its connection ended")

    p.set(Liveness, "connection_lost", lost)


@mutant("FLUSH is said once", only("kill", "reset_native", "block_native", "crash", "start"))
def flush_said_once(p: Patches) -> None:
    asked: dict[int, set[int]] = {}

    def repeat(self: Flushing, peer: Any) -> None:
        told = asked.setdefault(id(self._asking), set())
        if self._asking is not None and peer.native is None:
            told.add(peer.incarnation)  # it was not there when it was said
        if peer.incarnation not in told:
            told.add(peer.incarnation)
            before(self, peer)

    before = p.set(Flushing, "repeat", repeat)


@mutant("no lease ends, and nobody looks for whoever holds up a step", only("freeze", "start"))
def silence_is_patience(p: Patches) -> None:
    def check(self: Liveness, now_s: float) -> None:
        self._leases_checked_until_s = now_s + 1.0

    def advance(self: Progress, now_s: float) -> None:
        self.deadline_s = None

    p.set(Liveness, "_check_leases", check)
    p.set(Progress, "advance", advance)


@mutant("a view is told once", only("reset_agent", "block_agent", "kill", "start", delay_s=0.05))
def install_said_once(p: Patches) -> None:
    from pccl.membership.core import Core

    p.set(Core, "send_view", lambda self, peer: None)


def a_hold_that_nobody_remembers(seed: int) -> Script:
    """The coordinator dies while members hold, and with it the one they hold for."""
    rng = random.Random(f"{seed} forgotten hold")
    dies_s = round(rng.uniform(2.3, 3.2), 3)
    starts = (Fault(0.0, "start"), Fault(0.1, "start"), Fault(2.0, "start"))
    deaths = (Fault(dies_s, "c_kill", x=0.2), Fault(dies_s + 0.01, "kill", a=2))
    faults = (*starts, *deaths)
    return Script(seed, delay_s=0.05, think_s=0.1, rejoin=False, faults=faults)


@mutant("who comes back is not told that a promise of it is over", a_hold_that_nobody_remembers)
def holds_not_taken_back(p: Patches) -> None:
    p.set(Planning, "reattached", lambda self, peer: self.repeat(peer))


@mutant("an accepted dial is a death as well", only("reset_agent", "reset_native", "duplicate"))
def every_dial_is_refused(p: Patches) -> None:
    def dialled(self: Liveness, event: Any, now_s: float) -> None:
        before(self, replace(event, alive=False), now_s)

    before = p.set(Liveness, "dialled", dialled)


@mutant(
    "a flush asks only members whose connection is up", only("reset_native", "shape", "manifest")
)
def detached_members_not_awaited(p: Patches) -> None:
    def awaited(self: Flushing, asking: Any, now_s: float) -> Any:
        return [p for p in before(self, asking, now_s) if p.native is not None]

    before = p.set(Flushing, "_awaited", awaited)


def a_newcomer_at_an_entry_of_the_past(seed: int) -> Script:
    """It waits where the members began, while they still remember that; another comes after it."""
    rng = random.Random(f"{seed} misfit")
    return Script(
        seed,
        delay_s=rng.choice((0.005, 0.02)),
        think_s=0.1,
        misfit_s=EVER,
        misfit_first=True,
        faults=(
            *(Fault(0.05 * i, "start") for i in range(2)),
            Fault(round(rng.uniform(0.6, 0.75), 3), "start"),
            Fault(0.9, "start"),
            Fault(2.0, "start"),
        ),
    )


@mutant("a join waits for its name for ever", a_newcomer_at_an_entry_of_the_past)
def names_awaited_for_ever(p: Patches) -> None:
    p.set(Entering, "_await_first", lambda self, entering, now_s: None)


def everybody_stops(seed: int) -> Script:
    starts = (Fault(0.0, "start"), Fault(0.1, "start"))
    return Script(seed, faults=(*starts, Fault(2.0, "stop_all", x=1.0)))


@mutant("newcomers wait for ever for members that stand still", everybody_stops)
def nobody_is_given_up(p: Patches) -> None:
    p.set(Unheard, "give_up", lambda self, unheard_s, now_s: None)


def most_are_cut_off(seed: int) -> Script:
    """For longer than a lease and a flush, and shorter than the grace."""
    rng = random.Random(f"{seed} cut off")
    starts = (Fault(0.1 * i, "start") for i in range(rng.choice((3, 4, 5))))
    cut = Fault(round(rng.uniform(2.0, 3.0), 3), "c_cut", x=round(rng.uniform(3.5, 5.0), 3))
    return Script(seed, faults=(*starts, cut))


@mutant("a view loses most of its members as soon as they are silent", most_are_cut_off)
def no_mass_loss_brake(p: Patches) -> None:
    p.set(Brake, "holds_until_s", lambda self, now_s: None)
