"""The training program of a modelled peer: steps with names, in the same order on every peer.

It computes, begins a step (waiting at the gate), posts its operation, seals, and goes on; with
`open_steps` above one it begins further steps while earlier ones run.  Faults of a script make it
slow, post the wrong thing, or break off inside a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pccl.membership.member_events import Leave
from pccl.transport.native_frames import SuspectCode
from tests.sim.data_plane import MANIFESTS
from tests.sim.script import EVER

if TYPE_CHECKING:
    from tests.sim.peer_process import PeerProcess
    from tests.sim.world import World

ENTRY_NAMES: Final = ("outer", "inner", "inner")  # of steps 0, 1, 2, 3, ...: what all programs run
MISFIT: Final = "warm-up"  # an entry to which the members do not come, or never again
EARLY_S: Final = 0.8  # who starts before makes the first view, mostly
BREAKS: Final = ("", "leave", "local")


class Program:
    def __init__(self, world: World, peer: PeerProcess) -> None:
        self.world = world
        self.peer = peer
        self.busy_until_s = 0.0  # it computes
        self.over = False
        self.open = 0  # steps begun and not decided
        self.next_shape = 0  # of the next step alone
        self.next_manifest = 0
        self.next_break = ""  # how it breaks off in its next step
        self.slow_s = 0.0  # between beginning the next step and posting in it
        self._poked = False
        script, late = world.script, world.now_s >= EARLY_S
        misfit = peer.index % 2 == 1 if late else script.misfit_first
        self._misfit_until_s = world.now_s + script.misfit_s if misfit else 0.0
        if 0.0 < self._misfit_until_s < EVER:
            world.at(self._misfit_until_s, peer, self._come_to_another_entry)

    @property
    def misfit(self) -> bool:
        """Says whether it waits where the members do not come."""
        return self.world.now_s < self._misfit_until_s and self.peer.engine.next_step == 0

    def _come_to_another_entry(self) -> None:
        if not self.peer.engine.is_member():
            self.peer.engine.leave_entry()
        self.poke()

    def _entry(self) -> str:
        if self.misfit:
            return MISFIT
        return ENTRY_NAMES[self.peer.engine.next_step % len(ENTRY_NAMES)]

    # ------------------------------------------------------------ what moves it

    def poke(self) -> None:
        """Something has changed; the program looks again, soon."""
        if not self._poked and not self.over:
            self._poked = True
            self.world.at(self.world.now_s, self.peer, self._run)

    def decided(self, step: int) -> None:
        self.open -= 1
        self._end_if_left()
        self.poke()

    def _run(self) -> None:
        self._poked = False
        world = self.world
        while not self.over and world.now_s >= self.busy_until_s:
            if self.open >= world.script.open_steps:
                return
            engine = self.peer.engine
            self.open += 1
            step = engine.begin(self._entry())
            if step is None:
                self.open -= 1
                self._end_if_left()
                return
            if step in engine.data.open:  # else it has failed already
                self._in_step(step)
            self.busy_until_s = world.now_s + world.script.think_s * world.rng.random()
            world.at(self.busy_until_s, self.peer, self.poke)

    def _end_if_left(self) -> None:
        """It has come to the step from which the others go on alone, and all before is done."""
        engine = self.peer.engine
        if engine.machine is None or self.over or self.open:
            return
        if self.peer.draining and engine.machine.refusal() == "left":
            self.over = True
            self.peer.tell_member(Leave("left", engine.watermark))

    def _in_step(self, step: int) -> None:
        slow_s, self.slow_s = self.slow_s, 0.0
        broken, self.next_break = self.next_break, ""
        deadline_s = self.world.script.step_deadline_s
        if deadline_s < 1e6:
            self.world.at(self.world.now_s + deadline_s, self.peer, self._late, step)
        if broken == "leave":
            self.over = True
            self.peer.tell_member(Leave("ValueError inside a step"))
        elif broken == "local":
            text = "no memory for the undo copy"
            self.peer.engine.propose_failure(step, SuspectCode.LOCAL, text)
        elif slow_s > 0:
            self.world.at(self.world.now_s + slow_s, self.peer, self._post, step)
        else:
            self._post(step)

    def _post(self, step: int) -> None:
        data = self.peer.engine.data
        shape, self.next_shape = self.next_shape, 0
        manifest, self.next_manifest = self.next_manifest or shape, 0
        every = self.world.script.bound_steps
        data.post(step, shape, MANIFESTS[manifest], bound=every > 0 and step % every == 0)
        if self.peer.alive and self.peer.engine.failed is None:
            data.seal(step)

    def _late(self, step: int) -> None:
        """The step's deadline has passed: the coordinator is asked to end it."""
        if step in self.peer.engine.data.open and self.peer.engine.failed is None:
            text = f"step {step} ran out of time"
            self.peer.engine.propose_failure(step, SuspectCode.DEADLINE, text)
            self.world.at(self.world.now_s + 1.0, self.peer, self._late, step)
