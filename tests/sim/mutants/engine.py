"""Mutants of a peer's engine: the gate, the fence, the counting of DONEs, the undo."""

from __future__ import annotations

import random
from typing import Any

from pccl.membership.messages import StepOutcome
from tests.sim import engine as engine_module
from tests.sim.data_plane import MANIFESTS, Attempt, DataPlane, digest_of
from tests.sim.engine import SimEngine
from tests.sim.history import History
from tests.sim.mutants.catalogue import Patches, mutant, of_kind, only
from tests.sim.script import EVER, Fault, Script

DEATHS = only("kill", "crash", "crash_commit", "stop", "start", "vanish")


def _deliver(plane: DataPlane, step: int, attempt: Attempt) -> None:
    """Tells the program that a step is committed, whatever becomes of it."""
    if id(attempt) not in plane.__dict__.setdefault("delivered", set()):
        plane.__dict__["delivered"].add(id(attempt))
        plane.__dict__.setdefault("kept", []).append(attempt)  # so that its id stays its own
        plane.world.history.decided(
            plane.peer, step, "commit", attempt.mates, tuple(attempt.buffer)
        )


def _commit_once(p: Patches) -> None:
    """What was delivered already is not told again by the machine's own commit."""

    def committed(self: DataPlane, step: int) -> None:
        attempt = self.open[step]
        if id(attempt) in self.__dict__.get("delivered", ()):
            self.open.pop(step)
            known = self.world.history.outcomes.get((self.peer.lineage, step, self.peer.group))
            said = ("commit", attempt.mates, tuple(attempt.buffer))
            assert known == said, f"step {step} was delivered as {known}, now it is {said}"
            self.peer.program.decided(step)
        else:
            before(self, step)

    before = p.set(DataPlane, "committed", committed)
    p.set(History, "check_end", lambda self, peer, watermark: None)  # it counts deliveries


@mutant("a result is delivered as soon as it is complete, before the DONEs", DEATHS)
def delivered_at_completion(p: Patches) -> None:
    def complete(self: DataPlane, step: int, attempt: Attempt) -> None:
        _deliver(self, step, attempt)
        before(self, step, attempt)

    _commit_once(p)
    before = p.set(DataPlane, "complete", complete)


@mutant("a peer commits with the first DONE of another", DEATHS)
def one_done_is_enough(p: Patches) -> None:
    def receive(self: DataPlane, frame: Any) -> None:
        before(self, frame)
        kind, _, epoch, step, *_ = frame
        attempt = self.open.get(step)
        if attempt is None or not attempt.complete or self.engine.frozen:
            return
        if kind == "done" and attempt.epoch == epoch:
            _deliver(self, step, attempt)

    _commit_once(p)
    before = p.set(DataPlane, "receive", receive)


@mutant("a peer that has reported completes and commits on", DEATHS)
def no_freeze(p: Patches) -> None:
    def complete(self: DataPlane, step: int, attempt: Attempt) -> None:
        if self.engine.frozen:
            digest = digest_of(step, attempt.buffer)
            self.send_done(step, attempt.epoch, attempt.manifest, digest)
            look(self, step, attempt)
        else:
            before_complete(self, step, attempt)

    def receive(self: DataPlane, frame: Any) -> None:
        before_receive(self, frame)
        attempt = self.open.get(frame[3])
        if attempt is not None:
            look(self, frame[3], attempt)

    def look(self: DataPlane, step: int, attempt: Attempt) -> None:
        if self.engine.frozen and attempt.started and attempt.complete:
            heard = self.dones.get((attempt.epoch, step), set()) | {self.engine.incarnation}
            if heard >= set(attempt.participants):
                _deliver(self, step, attempt)

    _commit_once(p)
    p.set(DataPlane, "is_fenced", lambda self: False)
    before_complete = p.set(DataPlane, "complete", complete)
    before_receive = p.set(DataPlane, "receive", receive)


@mutant(
    "data of an earlier attempt is taken for data of this one",
    only("kill", "crash", "flip", "start", "delay", direct=True, delay_s=0.05),
)
def no_fence(p: Patches) -> None:
    def current(self: DataPlane, step: int, epoch: int) -> Attempt | None:
        attempt = self.open.get(step)
        if attempt is None or not attempt.started or not attempt.posted:
            return None
        return attempt if epoch <= attempt.epoch else None

    p.set(DataPlane, "current", current)


@mutant("the inputs are not given back before a step runs again", DEATHS)
def no_undo(p: Patches) -> None:
    p.set(DataPlane, "undo_copy", lambda self, attempt: list(attempt.buffer))


@mutant(
    "DONEs of an earlier attempt count for this one", only("flip", "kill", "crash_commit", "start")
)
def dones_across_epochs(p: Patches) -> None:
    def receive(self: DataPlane, frame: Any) -> None:
        kind, sender, epoch, step, shard, value, extra = frame
        attempt = self.open.get(step)
        if kind == "done" and attempt is not None and attempt.started and epoch < attempt.epoch:
            own = digest_of(step, attempt.buffer) if attempt.complete else extra
            frame = (kind, sender, attempt.epoch, step, shard, value, own)
        before(self, frame)

    before = p.set(DataPlane, "receive", receive)


@mutant("results are not compared", only("flip", "start"))
def digests_of_others_ignored(p: Patches) -> None:
    def receive(self: DataPlane, frame: Any) -> None:
        kind, sender, epoch, step, shard, value, _ = frame
        attempt = self.open.get(step)
        if kind == "done" and attempt is not None and attempt.complete:
            frame = (kind, sender, epoch, step, shard, value, digest_of(step, attempt.buffer))
        before(self, frame)

    before = p.set(DataPlane, "receive", receive)


@mutant("descriptors are not compared", only("shape", "start"))
def shapes_not_compared(p: Patches) -> None:
    def on_post(self: DataPlane, step: int, attempt: Attempt, *said: Any) -> None:
        sender, shard, value, _ = said
        before(self, step, attempt, sender, shard, value, attempt.shape)

    def post(self: DataPlane, step: int, shape: int, manifest: bytes) -> None:
        posted(self, step, shape, MANIFESTS[0])

    before = p.set(DataPlane, "_on_post", on_post)
    posted = p.set(DataPlane, "post", post)


@mutant("a member promises a step and begins it all the same", of_kind("joins", open_steps=3))
def hold_ignored(p: Patches) -> None:
    p.set(SimEngine, "hold", lambda self, generation, epoch: self.next_step)


def a_joiner_that_dies(seed: int) -> Script:
    """It dies while the members hold for it, and nobody comes after it."""
    rng = random.Random(f"{seed} dying joiner")
    starts = (Fault(0.0, "start"), Fault(0.1, "start"), Fault(2.0, "start"))
    dies = Fault(round(rng.uniform(2.3, 3.4), 3), "kill", a=2)
    return Script(seed, delay_s=0.05, think_s=0.1, rejoin=False, faults=(*starts, dies))


@mutant("a promise outlives its plan", a_joiner_that_dies)
def hold_never_released(p: Patches) -> None:
    p.set(SimEngine, "cancel_plan", lambda self, generation, epoch: None)


@mutant(
    "a member promises a step below one that is decided",
    only("local", "start", "raise", open_steps=3),
)
def hold_below_decided(p: Patches) -> None:
    def hold(self: SimEngine, generation: int, epoch: int) -> int:
        waiting = [s for s, a in self.data.open.items() if not a.started]
        said: int = before(self, generation, epoch)
        return min([said, self.next_step, *waiting])

    before = p.set(SimEngine, "hold", hold)


@mutant("a joiner takes part from step 0 on", of_kind("joins", open_steps=3))
def joiner_from_the_beginning(p: Patches) -> None:
    def unchanged(members: Any) -> Any:
        return [(m[0], m[1], 0, m[7]) for m in members]

    p.set(engine_module, "_machine_members", unchanged)


@mutant(
    "a program that has not come to a failed step is not told of the failure",
    only("shape", "slow", "start", step_deadline_s=1e9),
)
def failure_not_told_to_the_late(p: Patches) -> None:
    def install(self: SimEngine, generation: int, epoch: int, *rest: Any) -> None:
        members, paused, below, decisions, *more = rest
        begun = [d for d in decisions if d[0] < self.next_step or d[1] != StepOutcome.FAIL]
        before(self, generation, epoch, members, paused, below, begun, *more)

    before = p.set(SimEngine, "install", install)


@mutant("what the flush decided is not done: open steps run again", DEATHS)
def decisions_ignored(p: Patches) -> None:
    def install(self: SimEngine, generation: int, epoch: int, *rest: Any) -> None:
        members, paused, below, decisions, *more = rest
        again = [(s, int(StepOutcome.RETRY), 0, "") for s, *_ in decisions]
        before(self, generation, epoch, members, paused, 0 * below, again, *more)

    before = p.set(SimEngine, "install", install)


@mutant(
    "a suspicion is told once, also to a coordinator that dies",
    only("c_kill", "c_crash", "c_depose", "shape"),
)
def suspicion_told_once(p: Patches) -> None:
    from tests.sim.control_link import ControlLink

    def send_suspicions(self: ControlLink) -> None:
        before(self)
        self._told.clear()

    before = p.set(ControlLink, "_send_suspicions", send_suspicions)


@mutant(
    "what was lost with a lane is not said again", only("reset_link", "start", step_deadline_s=1e9)
)
def nothing_said_again(p: Patches) -> None:
    def say_again(self: DataPlane, other: int) -> None:
        if self.world.links.between(self.engine.incarnation, other).life == 0:
            before(self, other)

    before = p.set(DataPlane, "say_again", say_again)


@mutant("a member expects every name", of_kind("joins", misfit_s=EVER))
def every_name_expected(p: Patches) -> None:
    p.set(SimEngine, "entry_within", lambda self, name: 1)


@mutant(
    "a step that depends on its members runs again among others",
    only("kill", "crash", "start", "slow", bound_steps=2, step_deadline_s=1e9),
)
def bound_step_runs_again(p: Patches) -> None:
    p.set(DataPlane, "_refuses", lambda self, step, attempt: False)


@mutant(
    "nobody says that a step cannot run among those that are left",
    only("kill", "crash", "start", "slow", bound_steps=2, step_deadline_s=1e9),
)
def refusal_untold(p: Patches) -> None:
    def _refuses(self: DataPlane, step: int, attempt: Attempt) -> bool:
        attempt.accused = attempt.accused or attempt.misplaced
        refuses: bool = before(self, step, attempt)
        return refuses

    before = p.set(DataPlane, "_refuses", _refuses)
