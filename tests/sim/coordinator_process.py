"""One coordinator's process: the shipped machine and output commit, a disk, and its deaths.

It performs effects as service_driver.py does, and is worse luck than any real one: it dies before,
between and after the effects of one event; the write under way at that moment may be on disk or
not, and the record that waits for it is lost; it is stopped and goes on; and it may go on while
another has taken its place.
"""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING, Any, Final

from pccl.membership.coordinator import Coordinator
from pccl.membership.core import CoordinatorConfig
from pccl.membership.events import (
    Close,
    ConnDown,
    ConnUp,
    Dialled,
    Effect,
    Event,
    Log,
    NativeFrame,
    Paused,
    PeerMessage,
    Persist,
    ProbeListener,
    Send,
    SendNative,
    Synced,
)
from pccl.membership.messages import Refused
from pccl.membership.outdated import still_due
from pccl.membership.output_commit import OutputCommit
from pccl.membership.record import Record
from pccl.membership.store import StoreError
from pccl.transport.native_frames import RefusedFrame
from tests.sim.durability import check_is_durable
from tests.sim.world import Process, Wire, World

if TYPE_CHECKING:
    from pccl.membership.store import MemoryStore
    from tests.sim.disk import Disk

IDLE_TURNS_MAX: Final = 20  # calls of on_deadline at one moment before it counts as a busy loop
TURNS_AWAY: Final = Refused | RefusedFrame
UNANSWERED_S: Final = 10.0  # TCP_USER_TIMEOUT
PAUSE_MIN_S: Final = 0.6  # shorter ones are ordinary scheduling: the shell does not tell them


class CoordinatorProcess(Process):
    def __init__(self, world: World, copy: Disk | None = None) -> None:
        """On the disk of the run, or on a copy of it that is older than the run."""
        self.disk = world.disk if copy is None else copy
        self.is_copy = copy is not None
        store = self.disk.open()
        super().__init__(f"coordinator {store.generation}")
        self.world = world
        self.store: MemoryStore = store
        self.dies_in = 0  # so many batches of effects from now, between two of them
        self.dies_at = 0.0  # after this fraction of them
        self.back_after_s = -1.0
        self.wires: dict[int, Wire] = {}
        self.durable: Record | None = store.load()
        self._next_number = 1
        self._writing: tuple[int, Record] | None = None
        self._waiting: tuple[int, Record] | None = None  # the newest record, for the next write
        self._armed_s: float | None = None
        self._idle_turns = 0
        self.outbox: OutputCommit[Effect] = OutputCommit()
        world.note("{} starts", self)
        world.coordinators.append(self)
        world.listening, world.host_is_gone = self, False
        if not self.is_copy:
            world.history.started(store.generation)
        self.machine = Coordinator(
            CoordinatorConfig(
                min_world=world.script.min_world,
                on_underflow=world.script.on_underflow,
                profile=world.profile,
                hold_timeout_s=0.5,
                leave_report_s=0.5,
                link_settle_s=0.7,
                watch_first_s=3.0,
                watch_max_s=12.0,
                detached_grace_s=8.0,
                abandon_after_s=8.0,
                mass_loss_grace_s=6.0,
                plan_backoff_s=0.3,
                plan_backoff_max_s=2.0,
                flap_first_s=0.3,
                flap_max_s=2.0,
            ),
            generation=store.generation,
            record=self.durable,
            token_bytes=random.Random(world.rng.random()).randbytes,
            now_s=world.now_s,
        )
        self._begin()

    def _begin(self) -> None:
        self._perform(self.machine.on_deadline(self.world.now_s))
        self._arm()

    @property
    def held(self) -> int:
        """Sends that wait for a write."""
        return self.outbox.held

    def ended_unsaid(self) -> set[int]:
        """Connections that are over, of which the machine does not learn so."""
        return set()  # `lost` tells it

    # ------------------------------------------------------------ events

    def accept(self, wire: Wire) -> None:
        wire.number, self._next_number = self._next_number, self._next_number + 1
        self.wires[wire.number] = wire
        self._hand_in(ConnUp(wire.number, "127.0.0.1"))

    def receive(self, wire: Wire, message: Any) -> None:
        if wire.number in self.wires:
            self.world.note("{} <- {}: {}", self, wire.peer, message)
            kind: Any = NativeFrame if wire.kind == "native" else PeerMessage
            self._hand_in(kind(wire.number, message))

    def lost(self, wire: Wire) -> None:
        if self.wires.pop(wire.number, None) is not None:
            self.world.forget_wire(wire)
            self._hand_in(ConnDown(wire.number))

    def exclude(self, number: int) -> None:
        """Takes a member for a straggler, as its detector does when others have waited."""
        core = self.machine._core
        members = core.members()
        if self.alive and members and self.stopped_until_s <= self.world.now_s:
            core.now_s = self.world.now_s
            core.exclude(members[number % len(members)], "others have waited for it")
            self._perform(self.machine.on_deadline(self.world.now_s))
            self._arm()

    def _hand_in(self, event: Event) -> None:
        self._perform(self.machine.handle(event, self.world.now_s))
        self._arm()

    def _arm(self) -> None:
        deadline_s = self.machine.deadline_s
        if not self.alive or deadline_s is None:
            return
        if self._armed_s is None or deadline_s < self._armed_s:
            self._armed_s = deadline_s
            self.world.at(deadline_s, self, self._on_time, deadline_s)

    def _on_time(self, armed_s: float) -> None:
        now_s = self.world.now_s
        if armed_s != self._armed_s:
            return  # an earlier one was armed meanwhile
        if now_s == self.stopped_until_s:
            # Input before timers: what arrived meanwhile comes at this very moment.
            self.world.at(now_s + 1e-6, self, self._on_time, armed_s)
            return
        self._armed_s = None
        deadline_s = self.machine.deadline_s
        if deadline_s is not None and now_s >= deadline_s:
            self._perform(self.machine.on_deadline(now_s))
            deadline_s = self.machine.deadline_s
            self._idle_turns += 1 if deadline_s is not None and deadline_s <= now_s else 0
            assert self._idle_turns < IDLE_TURNS_MAX, "the deadline stays in the past"
            if deadline_s is not None and deadline_s > now_s:
                self._idle_turns = 0
        self._arm()

    # ------------------------------------------------------------ effects

    def _perform(self, effects: list[Effect]) -> None:
        if not self.alive:
            return
        self._check_decides(effects)
        dies = False
        if self.dies_in > 0 and len(effects) > 1:
            self.dies_in -= 1
            if self.dies_in == 0:
                dies = True
                effects = effects[: round(self.dies_at * len(effects))]
        for effect in effects:
            match effect:
                case Persist(token, record):
                    self._persist(token, record)
                case Log(level, text):
                    assert level != "error" or self.may_be_outdated(), text
                    self.world.note("{}: {}", self, text)
                case _:
                    self.outbox.send(effect)
        self._release()
        if dies:
            self.world.note("{} dies between effects", self)
            self.die(self.world.rng.random())

    def _persist(self, token: int, record: Record) -> None:
        assert not self.machine.outdated, f"{self} writes though its journal is outdated"
        if not self.is_copy:
            self.world.history.recorded(record)
        self.outbox.write(token)
        self._waiting = (token, record)
        if self._writing is None:
            self._write_next()

    def _write_next(self) -> None:
        world = self.world
        self._writing, self._waiting = self._waiting, None
        took_s = 2 * world.rng.random() * world.script.fsync_s
        world.at(world.now_s + took_s, self, self._written)

    def _written(self) -> None:
        assert self._writing is not None
        token, _ = self._writing
        try:
            self._save()
        except StoreError as error:
            self.world.note("{}: {}", self, error)
            self.die(0.0)
            return
        if self._waiting is not None:
            self._write_next()
        self.outbox.synced(token)
        self._release()
        self._hand_in(Synced(token))

    def _save(self) -> None:
        assert self._writing is not None
        (_, record), self._writing = self._writing, None
        self.store.save(record)
        self.durable = record
        self.disk.saved(record)

    def _release(self) -> None:
        for effect in still_due(self.outbox.release(), self.machine.outdated):
            if self.alive:
                self._act(effect)

    def _act(self, effect: Effect) -> None:
        world = self.world
        match effect:
            case Send(conn, msg):
                wire = self.wires.get(conn)
                if wire is not None:
                    world.note("{} -> {}: {}", self, wire.peer, msg)
                    check_is_durable(self, msg)
                    self.check_says(msg)
                    world.send_down(wire, msg)
            case SendNative(conn, frame):
                wire = self.wires.get(conn)
                if wire is not None:
                    world.note("{} -> {}: {}", self, wire.peer, frame)
                    check_is_durable(self, frame)
                    self.check_says(frame)
                    world.send_down(wire, frame)
            case Close(conn):
                wire = self.wires.get(conn)
                if wire is not None:
                    world.close_down(wire)
            case ProbeListener():
                self._probe(effect)
            case _:
                raise AssertionError(f"unexpected effect {effect}")

    def _check_decides(self, effects: list[Effect]) -> None:
        """An outdated coordinator only turns away."""
        for effect in effects if self.machine.outdated else ():
            if isinstance(effect, Send | SendNative):
                said = effect.msg if isinstance(effect, Send) else effect.frame
                assert isinstance(said, TURNS_AWAY), f"outdated, {self} says {said}"

    def check_says(self, message: Any) -> None:
        """An outdated coordinator only turns away."""
        if self.machine.outdated:
            assert self.may_be_outdated(), f"{self} takes the newest journal for an old copy"
            assert isinstance(message, TURNS_AWAY), f"outdated, {self} says {message}"

    def may_be_outdated(self) -> bool:
        deposed = self.disk.generation > self.store.generation
        return bool(self.machine.outdated) and (self.is_copy or deposed)

    def _probe(self, effect: ProbeListener) -> None:
        world = self.world
        peer = world.by_incarnation.get(effect.incarnation)
        cut_s = 0.0
        if peer is not None:
            cut_s = max(
                world.blocked_until_s(("native", peer.index, way)) for way in ("up", "down")
            )
        if (peer is not None and peer.vanished) or cut_s > world.now_s:
            # Nobody answers, or the answer is lost: that proves nothing.
            answer = Dialled(effect.peer_id, effect.incarnation, True)
            world.at(world.now_s + effect.timeout_s, self, self._hand_in, answer)
            return
        world.at(world.now_s + world.hop_s(), None, self._probed, effect, peer)

    def _probed(self, effect: ProbeListener, peer: Any) -> None:
        alive = peer is not None and peer.alive
        answer = Dialled(effect.peer_id, effect.incarnation, alive)
        self.world.at(self.world.now_s + self.world.hop_s(), self, self._hand_in, answer)

    # ------------------------------------------------------------ its end

    def stop(self, duration_s: float) -> None:
        world = self.world
        if not self.alive or world.now_s < self.stopped_until_s:
            return
        world.note("{} stops for {:.2f} s", self, duration_s)
        self.stopped_until_s = world.now_s + duration_s
        if duration_s >= PAUSE_MIN_S:
            self.world.at(world.now_s, self, self._hand_in, Paused(duration_s))

    def cancel(self) -> None:
        """It is told to end, as by a signal: what it has begun to write, it writes."""
        self.die(1.0)

    def die(self, written: float, *, silently: bool = False) -> None:
        """Ends at once; `written`, rounded, says whether the write under way is on disk.
        Silently: with its machine, so that nobody's connection ends."""
        if not self.alive:
            return
        world = self.world
        world.note("{} dies", self)
        if self._writing is not None and round(written):
            with contextlib.suppress(StoreError):
                self._save()
        self.alive = False
        if world.listening is self:
            world.listening, world.host_is_gone = None, silently
        for wire in [w for w in world.wires if w.coordinator is self]:
            if silently:
                _leave_half_open(world, wire)
            else:
                world.reset(wire, world.rng.random())
            world.forget_wire(wire)
        self.wires.clear()
        if world.listening is None:
            # A coordinator that is gone comes back: whoever runs it sees to that.
            after_s = self.back_after_s if self.back_after_s >= 0 else 0.5
            world.at(world.now_s + after_s, None, start_coordinator, world)


def _leave_half_open(world: World, wire: Wire) -> None:
    """The peer's kernel learns that the other end is gone when somebody is there again and answers
    its next heartbeat, or what it sends again, with a reset, or after a long silence."""
    wire.up_until_s = wire.down_until_s = world.now_s
    silent_s = world.now_s + UNANSWERED_S

    def look() -> None:
        says = wire.kind == "native" or wire.last_up_s > wire.up_until_s
        answered = says and not world.host_is_gone
        if answered or world.now_s >= silent_s:
            world.at(world.now_s, wire.peer, wire.on_closed)
        else:
            world.at(world.now_s + world.profile.heartbeat_s, wire.peer, look)

    look()


def start_coordinator(world: World) -> None:
    if world.listening is None:
        world.make_coordinator(world)
