"""One peer's process: the shipped Member machine in a shell like agent.py, an engine, a program.

It dies before, between and after the effects of one event of either machine, is stopped and goes
on, and starts again as a new process when it was told to go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from pccl.membership import member_events as e
from pccl.membership.engine_effects import perform_on_engine
from pccl.membership.member import Member
from pccl.transport.engine_events import EngineEvent
from tests.sim.engine import SimEngine
from tests.sim.program import Program
from tests.sim.world import Process, Wire, World

if TYPE_CHECKING:
    from tests.sim.control_link import NativeEnd

CONNECT_TIMEOUT_S = 60.0
KEEPALIVE_S = 4.0  # then the kernel knows that the other machine is gone


class PeerProcess(Process):
    def __init__(self, world: World, peer_id: bytes | None = None) -> None:
        self.index = len(world.peers)
        super().__init__(f"peer {self.index}")
        self.world = world
        self.peer_id = peer_id or world.rng.randbytes(15) + bytes((self.index % 256,))
        self.group = self.index % world.script.groups
        self.vanished = False  # with its machine: nobody answers for it
        self.leaving = False
        self.draining = False
        self.touched = False  # by a fault
        self.known: tuple[int, ...] = ()  # incarnations it dials
        self.dies_in = 0  # so many batches of effects from now, between two of them
        self.dies_at = 0.0  # after this fraction of them
        self.commits_left = 0  # it dies as soon as it has committed so many steps by itself
        self.dies_in_older_view = False  # steps that run in a view before the present one
        self.doomed = False
        self.abrupt = False  # what it had sent and has not arrived is lost
        self.back_after_s = 1.0  # then a new process takes its place; negative: never
        # What the history keeps of it.
        self.lineage = 0
        self.first_step: int | None = None
        self.expected_step = 0
        self.decided_ahead: set[int] = set()
        self.epoch_seen = 0
        self.generation_seen = 0
        self.generation_followed = 0
        world.peers.append(self)
        self.engine = SimEngine(world, self)
        self.program = Program(world, self)
        self._start()
        self.program.poke()

    def _start(self) -> None:
        self.agent: Wire | None = None
        self._inbox: deque[e.Event] = deque()
        self._handling = False
        self._armed_s: float | None = None
        self._steps = 0
        identity = e.Identity(
            peer_id=self.peer_id,
            data_host="127.0.0.1",
            data_port=4000 + self.index,
            host_key=0,
            group=self.group,
        )
        self.member = Member(
            identity,
            now_s=self.world.now_s,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            coordinator_grace_s=None,
            dice=self.world.rng.random,
        )
        self._arm()

    @property
    def phase(self) -> str:
        return self.member.phase.value

    @property
    def incarnation(self) -> int:
        return self.engine.incarnation

    def __repr__(self) -> str:
        return f"{self.name}.{self.engine.incarnation}"

    # ------------------------------------------------------------ the agent's loop

    def engine_event(self, event: EngineEvent) -> None:
        self.tell_member(event)

    def tell_member(self, event: e.Event) -> None:
        """Queues an event for the agent's thread, which comes to it a little later."""
        self._inbox.append(event)
        if not self._handling:
            self._handling = True
            lag_s = self.world.script.lag_s
            at_s = self.world.now_s + (lag_s * self.world.rng.random() if lag_s else 0.0)
            self.world.at(at_s, self, self._handle)

    def _handle(self) -> None:
        while self._inbox:
            event = self._inbox.popleft()
            if isinstance(event, e.Drain):
                self.draining = True
            if isinstance(event, e.Leave):
                self.leaving = True
            self._perform(self.member.handle(event, self.world.now_s))
            if not self.alive:
                return
        self._handling = False
        self._arm()
        self._end_if_over()

    def _arm(self) -> None:
        deadline_s = self.member.deadline_s
        if deadline_s is not None and (self._armed_s is None or deadline_s < self._armed_s):
            self._armed_s = deadline_s
            self.world.at(deadline_s, self, self._on_time, deadline_s)

    def _on_time(self, armed_s: float) -> None:
        if armed_s != self._armed_s:
            return
        now_s = self.world.now_s
        if now_s == self.stopped_until_s:  # input before timers
            self.world.at(now_s + 1e-6, self, self._on_time, armed_s)
            return
        self._armed_s = None
        deadline_s = self.member.deadline_s
        if deadline_s is not None and now_s >= deadline_s:
            self.member.handle(e.Progress(self.expected_step), now_s)
            self._perform(self.member.on_deadline(now_s))
        if self.alive:
            self._arm()
            self._end_if_over()

    def cut_short(self, effects: list[Any]) -> list[Any]:
        """Of one event's effects, those that this process still performs before it dies."""
        if effects:
            self.dies_in -= 1
            if self.dies_in == 0:
                self.doomed = True
                return effects[: round(self.dies_at * len(effects))]
        return effects

    def _perform(self, effects: list[e.Effect]) -> None:
        if self.dies_in:
            effects = self.cut_short(effects)
        for effect in effects:
            self._act(effect)
            if not self.alive:
                return
        if self.doomed:
            self.die()

    def _act(self, effect: e.Effect) -> None:
        engine, world = self.engine, self.world
        match effect:
            case e.Send(message):
                if self.agent is not None:
                    world.send_up(self.agent, message)
            case e.Dial():
                world.dial(self, "agent", self._dialled)
            case e.HangUp():
                wire, self.agent = self.agent, None
                if wire is not None:
                    world.close_up(wire)
            case e.HoldEngine(generation, epoch, name):
                step = engine.hold(generation, epoch)
                within = engine.entry_within(name) if name else 1
                world.note("{} holds from step {} for epoch {}", self, step, epoch)
                self.tell_member(e.Held(generation, epoch, step, within))
            case e.FailEngine(code, text):
                world.note("{} ends ({}): {}", self, code, text)
                engine.fail(code, text)
            case _:
                perform_on_engine(effect, engine)  # type: ignore[arg-type]  # as far as it goes

    # ------------------------------------------------------------ connections

    def _dialled(self, wire: Wire | None) -> None:
        if wire is None:
            self.tell_member(e.Disconnected("nobody answered"))
            return
        self.agent = wire
        wire.on_message = self._received
        wire.on_closed = partial(self._closed, wire)
        self.tell_member(e.Connected("127.0.0.1", 4000))

    def _received(self, message: Any) -> None:
        self.tell_member(e.Received(message))

    def _closed(self, wire: Wire) -> None:
        if self.agent is wire:
            self.agent = None
            self.tell_member(e.Disconnected("the connection ended"))

    def dial_native(self, answer: Callable[[NativeEnd | None], None]) -> None:
        def dialled(wire: Wire | None) -> None:
            answer(None if wire is None else WireEnd(self.world, wire))

        self.world.dial(self, "native", dialled)

    def link_up(self, other: int) -> None:
        self.engine.data.say_again(other)
        self.engine.links_changed()

    # ------------------------------------------------------------ its end

    def committed_itself(self, *, in_older_view: bool) -> None:
        if self.commits_left and (in_older_view or not self.dies_in_older_view):
            self.commits_left -= 1
            self.doomed = self.abrupt = self.commits_left == 0

    def stop(self, duration_s: float) -> None:
        self.world.note("{} stops for {:.2f} s", self, duration_s)
        self.stopped_until_s = max(self.stopped_until_s, self.world.now_s + duration_s)

    def die(self, *, silently: bool = False) -> None:
        """The process ends at once; silently: with its machine, or behind a cut cable."""
        if not self.alive:
            return
        world = self.world
        world.note("{} dies", self)
        self.alive, self.vanished = False, silently
        for wire in [w for w in world.wires if w.peer is self]:
            if silently:
                wire.up_until_s = min(wire.up_until_s, world.now_s)
                known_s = world.now_s + KEEPALIVE_S
                world.at(known_s, wire.coordinator, wire.coordinator.lost, wire)
            else:
                world.reset(
                    wire, 0.0 if self.abrupt else world.rng.choice((1.0, world.rng.random()))
                )
        world.links.lose(self, silently=silently)
        if self.back_after_s >= 0:
            world.at(world.now_s + self.back_after_s, None, start_peer, world)

    def engine_failed(self, code: str, text: str) -> None:
        self.program.over = True

    def _end_if_over(self) -> None:
        if self.member.ended is not None:
            self._end(self.member.ended.code)

    def _end(self, code: str) -> None:
        """The program learns why it is over, and mostly connects again as a new process."""
        if not self.alive:
            return
        told = code == "evicted"
        self.world.note("{} is over: {}", self, code)
        self.world.told_count += told
        self.world.innocent_count += told and not self.touched and not self.world.nobody_is_safe
        if self.leaving or self.draining:
            self.back_after_s = -1.0
        else:
            self.back_after_s = 0.2
        self.die()


class WireEnd:
    """A peer's end of a native connection."""

    def __init__(self, world: World, wire: Wire) -> None:
        self._world = world
        self._wire = wire

    def attach(self, on_frame: Callable[[Any], None], on_closed: Callable[[], None]) -> None:
        self._wire.on_message, self._wire.on_closed = on_frame, on_closed

    def send(self, frame: Any) -> None:
        self._world.send_up(self._wire, frame)

    def close(self) -> None:
        self._world.close_up(self._wire)


def start_peer(world: World) -> PeerProcess:
    peer = world.make_peer(world)
    world.note("{} starts", peer)
    return peer
