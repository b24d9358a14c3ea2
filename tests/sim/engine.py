"""One peer's engine: the shipped outcome machine (C++) with a modelled data plane around it.

It has the face of transport/engine_api.py as far as membership uses it, and performs the machine's
effects as native/src/exec/executor.cpp does.  The data plane is in data_plane.py, the connection to
the coordinator in control_link.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pccl._native import OutcomeMachine, xxh3_64
from pccl.membership.message_parts import MemberInfo
from pccl.transport.engine_api import STEP_LEFT_CODE, DecisionTuple, MemberTuple
from pccl.transport.engine_events import (
    EngineEvent,
    EngineExcluded,
    EntryLeft,
    EntryReached,
    LinksOpened,
    LinksUnreachable,
    NativeEvicted,
    NativeRefused,
    ViewInstalled,
    ViewLeft,
    ViewSwitched,
)
from pccl.transport.native_frames import (
    FailedStep,
    OpenStep,
    Report,
    Routes,
    Suspect,
    SuspectCode,
)
from tests.sim.control_link import ControlLink
from tests.sim.data_plane import Attempt, DataPlane

if TYPE_CHECKING:
    from tests.sim.peer_process import PeerProcess
    from tests.sim.world import World

NOT_DECIDED: Final = (int(SuspectCode.EXCLUDED), STEP_LEFT_CODE)  # the others go on with the step
_HASHES: Final[dict[str, int]] = {}


def name_hash(name: str) -> int:
    found = _HASHES.get(name)
    if found is None:
        found = _HASHES[name] = xxh3_64(name.encode())
    return found


class SimEngine:
    def __init__(self, world: World, peer: PeerProcess) -> None:
        self.world = world
        self.peer = peer
        self.incarnation = 0
        self.secret = b""
        self.generation = 0
        self.members: tuple[MemberInfo, ...] = ()  # of the view in force
        self.routes: dict[bytes, bytes] = {}
        self.failed: tuple[str, str] | None = None
        self.at_entry = False
        self.installing = False
        self.machine: Any = None
        self.control = ControlLink(world, peer, self)
        self.data = DataPlane(world, peer, self)
        self.emit: Callable[[EngineEvent], None] = peer.engine_event
        self._pending: tuple[int, tuple[MemberInfo, ...]] | None = None
        self._preparing: tuple[int, tuple[int, ...]] | None = None
        self._planned: tuple[int, tuple[int, ...]] | None = None  # until in force, or cancelled

    # ------------------------------------------------------------ questions

    @property
    def epoch(self) -> int:
        return 0 if self.machine is None else int(self.machine.epoch)

    @property
    def watermark(self) -> int:
        return 0 if self.machine is None else int(self.machine.watermark)

    @property
    def next_step(self) -> int:
        return 0 if self.machine is None else int(self.machine.next_step)

    @property
    def frozen(self) -> bool:
        return self.machine is not None and bool(self.machine.frozen)

    @property
    def paused(self) -> bool:
        return self.machine is not None and bool(self.machine.paused)

    def is_member(self) -> bool:
        return self.machine is not None and int(self.machine.rank) >= 0

    # ------------------------------------------------------------ the program

    def begin(self, name: str) -> int | None:
        """Begins the next step if the gate lets it."""
        machine = self.machine
        if machine is not None:
            before = int(machine.next_step)
            # A failure told beforehand ends the step at once; else it is here when it starts.
            self.data.open[before] = attempt = Attempt(name)
            step, effects = machine.begin(name_hash(name))
            if step is None:
                del self.data.open[before]
            else:
                assert step == before
                attempt.began_s = self.world.now_s
            self.perform(effects)
            if step is not None:
                self.leave_entry()
                return before
        outside = machine is None or int(machine.rank) < 0 or bool(machine.paused)
        if outside and not self.at_entry:
            self.at_entry = True
            self.emit(EntryReached(name, self.next_step))
        return None

    def leave_entry(self) -> None:
        if self.at_entry:
            self.at_entry = False
            self.emit(EntryLeft())

    def propose_failure(self, step: int, code: SuspectCode, text: str) -> None:
        attempt = self.data.open.get(step)
        if attempt is not None:
            epoch = attempt.epoch if attempt.started else self.epoch
            self.control.suspect(Suspect(epoch, step, int(code), (), text))

    # ------------------------------------------------------------ membership

    def admit(
        self,
        *,
        run_id: bytes,
        incarnation: int,
        secret: bytes,
        generation: int,
        host: str,
        port: int,
        heartbeat_s: float,
        lease_s: float,
    ) -> None:
        if self.machine is None:
            self.incarnation, self.secret = incarnation, secret
            self.machine = OutcomeMachine(self.peer.peer_id, incarnation)
            assert incarnation not in self.world.by_incarnation, "an incarnation was given twice"
            self.world.by_incarnation[incarnation] = self.peer
        assert incarnation == self.incarnation
        self.control.admit(run_id, incarnation, secret, heartbeat_s, generation)

    def prepare_view(self, generation: int, epoch: int, members: Sequence[MemberTuple]) -> None:
        others = tuple(m[1] for m in members if m[1] != self.incarnation)
        self._planned = self._preparing = (epoch, others)
        self.world.links.learn(self.peer, others)
        self.links_changed()

    def links_changed(self) -> None:
        """A link came up: perhaps it was the last that a planned view needs."""
        if self._preparing is not None and self.failed is None:
            epoch, others = self._preparing
            if all(self.world.links.is_up(self.incarnation, other) for other in others):
                self._preparing = None
                self.emit(LinksOpened(epoch))

    def link_failed(self, other: int) -> None:
        if self._planned is not None and other in self._planned[1]:
            self._preparing = self._planned
            ids = (self.world.by_incarnation[other].peer_id,)
            self.emit(LinksUnreachable(self._planned[0], ids))

    def hold(self, generation: int, epoch: int) -> int:
        self._saw(generation)
        return int(self.machine.hold(generation, epoch))

    def entry_within(self, name: str) -> int:
        return int(self.machine.entry_within(name_hash(name)))

    def activate(
        self,
        generation: int,
        epoch: int,
        members: Sequence[MemberTuple],
        step: int,
        name: str,
        paused: int = 0,
    ) -> None:
        if self.failed is not None:
            return
        self._saw(generation)
        infos = _infos(members)
        self._learn(infos)
        if epoch > self.epoch and not self.frozen:
            self._pending = (epoch, infos)
        wanted = name_hash(name) if name else None
        self.perform(
            self.machine.activate(
                generation, epoch, _machine_members(members), step, wanted, paused
            )
        )
        self.changed()

    def cancel_plan(self, generation: int, epoch: int) -> None:
        if self.failed is not None:
            return
        self._saw(generation)
        if self._preparing is not None and self._preparing[0] == epoch:
            self._preparing = None
        if self._planned is not None and self._planned[0] <= epoch:
            self._planned = None
        self.perform(self.machine.cancel_plan(generation, epoch))
        self.changed()

    def install(
        self,
        generation: int,
        epoch: int,
        members: Sequence[MemberTuple],
        paused: int,
        committed_below: int,
        decisions: Sequence[DecisionTuple],
    ) -> None:
        if self.failed is not None:
            return
        self._saw(generation)
        infos = _infos(members)
        self._learn(infos)
        before = self.epoch
        if self._planned is not None and self._planned[0] <= epoch:
            self._planned = None
        if epoch > before:
            self._pending = (epoch, infos)  # if it is no flush, the machine switches to it later
        agrees, effects = self.machine.install(
            generation, epoch, _machine_members(members), paused, committed_below, decisions
        )
        if not agrees:
            self.evicted("the coordinator's outcome contradicts what this peer holds")
            raise AssertionError(f"{self.peer} holds otherwise than was decided for {epoch}")
        # The view is adopted between the decisions and the steps that start in it.
        first = next((i for i, e in enumerate(effects) if e[0] in ("start", "switched")), None)
        first = len(effects) if first is None else first
        self.installing = True
        self.perform(effects[:first])
        self.installing = False
        if not self.peer.alive:
            return
        if self.epoch == epoch > before and not any(e[0] == "switched" for e in effects):
            self._adopt(infos)
        self.perform(effects[first:])
        self.changed()
        self.control.beat()
        self.emit(ViewInstalled(epoch))

    def exclude(self, generation: int, epoch: int, text: str, code: int) -> None:
        if self.failed is not None:
            return
        self._saw(generation)
        before = self.epoch
        # Whatever the program is told, the others go on with its steps.
        assert code in (SuspectCode.EXCLUDED, SuspectCode.DESCRIPTOR)
        self.perform(self.machine.exclude(generation, epoch, text, SuspectCode.EXCLUDED))
        if self.epoch > before:
            self.members, self._pending = (), None
            self.world.note("{} is excluded from epoch {} on", self.peer, epoch)
            self.world.history.excluded(self.peer, self.epoch)
            self.data.adopted(self.epoch)
        self.changed()
        self.control.beat()
        self.emit(EngineExcluded(epoch))

    def fail(self, code: str, text: str) -> None:
        if self.failed is None:
            self.failed = (code, text)
            self.data.abandon()
            self.peer.engine_failed(code, text)

    def close(self) -> None:
        self.control.shut()

    def _saw(self, generation: int) -> None:
        if generation > self.generation:
            self.generation = generation
            self.world.history.generation_seen(self.peer, generation)

    def _learn(self, infos: tuple[MemberInfo, ...]) -> None:
        others = tuple(m.incarnation for m in infos if m.incarnation != self.incarnation)
        self.world.links.learn(self.peer, others)

    # ------------------------------------------------------------ the control thread

    def fence(self, generation: int, target: int) -> Report:
        if self.machine is None:
            return Report(generation, target, 0, False, 0, 0, 0)
        if generation >= self.generation:
            self._saw(generation)
        said = self.machine.fence(generation, target)
        opened = tuple([OpenStep(*fields) for fields in said.pop("open")])
        failed = tuple([FailedStep(*fields) for fields in said.pop("failed")])
        committed = tuple(said.pop("committed"))
        return Report(**said, committed=committed, open=opened, failed=failed)

    def routed(self, frame: Routes) -> None:
        """Through whom to reach whom; the whole table."""
        if frame.generation >= self.generation and frame.epoch == self.epoch:
            self.routes = {r.peer: r.via for r in frame.routes}
            self.world.links.dial_known(self.peer)

    def evicted(self, text: str) -> None:
        self.fail("evicted", text)
        self.emit(NativeEvicted(text))

    def refused(self, code: int, text: str) -> None:
        self.emit(NativeRefused(code, text))

    def changed(self) -> None:
        self.peer.program.poke()

    # ------------------------------------------------------------ effects of the machine

    def perform(self, effects: Iterable[tuple[Any, ...]]) -> None:
        if self.peer.dies_in:
            effects = self.peer.cut_short(list(effects))
        for effect in effects:
            kind = effect[0]
            if not self.peer.alive:
                return
            if kind == "start":
                self.data.start(effect[1], effect[2])
            elif kind == "send_done":
                self.data.send_done(*effect[1:])
            elif kind == "committed":
                self.data.committed(effect[1])
            elif kind == "failed":
                if effect[2] in NOT_DECIDED:
                    self.data.dropped(effect[1])
                else:
                    self.data.failed(effect[1])
            elif kind == "undo":
                self.data.undo(effect[1])
            elif kind == "switched":
                self._switched(effect[1], effect[2])
            elif kind == "left":
                assert self._pending is not None and self._pending[0] == effect[1]
                self._planned = self._preparing = None
                self._adopt(self._pending[1])
                self.emit(ViewLeft(effect[1], effect[2]))
            elif kind == "accuse":
                epoch, step, code, peers, text = effect[1:]
                self.control.suspect(Suspect(epoch, step, code, tuple(peers), text))
            else:
                raise AssertionError(f"unexpected effect {kind}")
        if self.peer.doomed:
            self.peer.die()

    def _switched(self, epoch: int, step: int) -> None:
        assert self._pending is not None and self._pending[0] == epoch, f"switched to {epoch}"
        known = {m.incarnation: m.first_step for m in self.members}
        self._planned = self._preparing = None
        self._adopt(
            tuple([replace(m, first_step=known.get(m.incarnation, step)) for m in self._pending[1]])
        )
        self.emit(ViewSwitched(epoch, step))

    def _adopt(self, members: tuple[MemberInfo, ...]) -> None:
        self.members, self._pending = members, None
        self.world.note("{} is in epoch {}", self.peer, self.epoch)
        self.world.history.in_force(self.peer, self.epoch, members)
        self.data.adopted(self.epoch)


def _infos(members: Sequence[MemberTuple]) -> tuple[MemberInfo, ...]:
    return tuple([MemberInfo(*m) for m in members])


def _machine_members(members: Sequence[MemberTuple]) -> list[tuple[bytes, int, int, int]]:
    return [(m[0], m[1], m[6], m[7]) for m in members]
