"""A seeded world: virtual time, a network with delays, a disk, faults, and the invariants.

The real Coordinator and the real OutputCommit queue run against ModelPeers.  Everything random
comes from one generator, so a seed is a run.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any

from pccl.base.config import TimeProfile
from pccl.membership.coordinator import Coordinator, CoordinatorConfig
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
from pccl.membership.output_commit import OutputCommit
from pccl.membership.record import Record, record_codec
from tests.sim.history import History
from tests.sim.model_engine import Done, Hooks, ModelEngine, Post
from tests.sim.model_peer import ModelPeer
from tests.sim.native_engine import NativeEngine

PROFILE = TimeProfile(
    name="sim",
    heartbeat_s=0.25,
    lease_s=1.5,
    flush_timeout_s=1.0,
    suspect_grace_s=1.0,
    links_timeout_s=2.0,
    initial_settle_s=0.5,
    reattach_window_s=3.0,
    coordinator_grace_s=60.0,
)
IDLE_TURNS_MAX = 20  # calls of on_deadline at one moment before it counts as a busy loop


@dataclass
class Conn:
    peer: ModelPeer
    native: bool
    up: bool = True
    last_up_s: float = 0.0  # arrival times so far: bytes keep their order
    last_down_s: float = 0.0


@dataclass
class World:
    seed: int
    native: bool = False  # the shipped outcome machine instead of its model
    min_world: int = 1
    open_steps: int = 1
    crash_prefix: float = 0.0  # chance that the coordinator dies between two effects
    delay_s: float = 0.005
    fsync_s: float = 0.003
    think_max_s: float = 0.2
    step_deadline_s: float = 1e9
    now_s: float = 0.0
    profile: TimeProfile = PROFILE
    peers: list[ModelPeer] = field(default_factory=list)
    machine: Coordinator | None = None
    stopped_until_s: float = 0.0
    blob: bytes | None = None
    generation: int = 0
    trace: list[str] = field(default_factory=list)
    history: History = field(default_factory=History)
    told_count: int = 0  # processes that were told to go

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = itertools.count()
        self._conns: dict[int, Conn] = {}
        self._conn_numbers = itertools.count(1)
        self._by_incarnation: dict[int, ModelPeer] = {}
        self._outbox: OutputCommit[Effect] = OutputCommit()
        self._slowness: dict[tuple[int, int], float] = {}  # links between peers are unequal
        self._pair_s: dict[tuple[int, int], float] = {}  # and keep the order
        self._cut_s: dict[tuple[int, int], float] = {}
        self._idle_turns = 0
        self._disk_free_s = 0.0
        self.start_coordinator()

    # ------------------------------------------------------------ time

    def at(self, time_s: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._heap, (max(time_s, self.now_s), next(self._sequence), action))

    def after(self, peer: ModelPeer, delay_s: float, action: Callable[[], None]) -> None:
        """Runs an action of a peer, later if the process is stopped, never if it has ended."""

        def run() -> None:
            if not peer.alive:
                return
            if self.now_s < peer.stopped_until_s:
                self.at(peer.stopped_until_s, run)
            else:
                action()

        self.at(self.now_s + delay_s, run)

    def run_until(self, time_s: float) -> None:
        while self._heap and self._heap[0][0] <= time_s:
            self.now_s, _, action = heapq.heappop(self._heap)
            action()
        self.now_s = time_s

    def think_s(self) -> float:
        return self.rng.uniform(0, self.think_max_s)

    def _hop_s(self) -> float:
        return self.delay_s * self.rng.uniform(0.5, 1.5)

    # ------------------------------------------------------------ the coordinator's process

    def start_coordinator(self) -> None:
        assert self.machine is None
        self.generation += 1
        dice = random.Random(self.rng.random())
        record = None if self.blob is None else record_codec.decode(self.blob)
        machine = Coordinator(
            CoordinatorConfig(min_world=self.min_world, profile=self.profile),
            generation=self.generation,
            record=record,
            token_bytes=dice.randbytes,
            now_s=self.now_s,
        )
        self.machine = machine
        self.stopped_until_s = 0.0
        self._outbox = OutputCommit()
        self._disk_free_s = self.now_s
        self._perform(machine, machine.on_deadline(self.now_s))
        self._arm(machine)

    def kill_coordinator(self) -> None:
        if self.machine is None:
            return
        self.note("coordinator dies")
        self.machine = None
        for number in list(self._conns):
            self._break(number, tell_coordinator=False)
        self._conns.clear()

    def stop_coordinator(self, duration_s: float) -> None:
        self.note(f"coordinator stops for {duration_s:.2f} s")
        machine = self.machine
        if machine is None or self.now_s < self.stopped_until_s:
            return
        self.stopped_until_s = self.now_s + duration_s
        self.at(self.stopped_until_s, lambda: self._hand_in(machine, Paused(duration_s)))

    def _hand_in(self, machine: Coordinator, event: Event) -> None:
        if self.machine is not machine:
            return
        if self.now_s < self.stopped_until_s:
            self.at(self.stopped_until_s, lambda: self._hand_in(machine, event))
            return
        self._perform(machine, machine.handle(event, self.now_s))
        self._arm(machine)

    def _arm(self, machine: Coordinator) -> None:
        deadline_s = machine.deadline_s
        if self.machine is machine and deadline_s is not None:
            self.at(deadline_s, lambda: self._deadline(machine))

    def _deadline(self, machine: Coordinator) -> None:
        if self.machine is not machine or machine.deadline_s is None:
            return
        if self.now_s < self.stopped_until_s:
            # Input before timers: what has arrived meanwhile is queued for that moment already.
            self.at(self.stopped_until_s + 1e-6, lambda: self._deadline(machine))
            return
        if self.now_s < machine.deadline_s:
            return
        self._perform(machine, machine.on_deadline(self.now_s))
        deadline_s = machine.deadline_s
        if deadline_s is not None and deadline_s <= self.now_s:
            self._idle_turns += 1
            assert self._idle_turns < IDLE_TURNS_MAX, "the deadline stays in the past"
        else:
            self._idle_turns = 0
        self._arm(machine)

    def _perform(self, machine: Coordinator, effects: list[Effect]) -> None:
        dies = len(effects) > 1 and self.rng.random() < self.crash_prefix
        if dies:
            effects = effects[: self.rng.randrange(len(effects))]
        for effect in effects:
            match effect:
                case Persist(token, record):
                    self._persist(machine, token, record)
                case Log(level, text):
                    assert level != "error", text
                    self.note(text)
                case _:
                    self._outbox.send(effect)
        self._release(machine)
        if dies:
            self.kill_coordinator()
            self.at(self.now_s + self.rng.uniform(0.05, 2.0), self.start_coordinator)

    def _persist(self, machine: Coordinator, token: int, record: Record) -> None:
        blob = record_codec.encode(record)
        outbox = self._outbox
        outbox.write(token)
        self._disk_free_s = (
            max(self._disk_free_s, self.now_s) + self.rng.uniform(0, 2) * self.fsync_s
        )
        self.history.recorded(record)

        def synced() -> None:
            if self.machine is machine:
                self.blob = blob
                outbox.synced(token)
                self._release(machine)
                self._hand_in(machine, Synced(token))

        self.at(self._disk_free_s, synced)

    def _release(self, machine: Coordinator) -> None:
        for effect in self._outbox.release():
            match effect:
                case Send(conn, msg):
                    self._down(conn, methodcaller("on_message", msg))
                case SendNative(conn, frame):
                    self._down(conn, methodcaller("on_frame", frame))
                case Close(conn):
                    self._close_down(conn)
                case ProbeListener(peer_id, incarnation):
                    self._probe(machine, peer_id, incarnation)

    def _probe(self, machine: Coordinator, peer_id: bytes, incarnation: int) -> None:
        def answer() -> None:
            peer = self._by_incarnation.get(incarnation)
            alive = peer is not None and peer.alive
            event = Dialled(peer_id, incarnation, alive)
            self.at(self.now_s + self._hop_s(), lambda: self._hand_in(machine, event))

        self.at(self.now_s + self._hop_s(), answer)

    # ------------------------------------------------------------ connections

    def dial(self, peer: ModelPeer, *, native: bool) -> None:
        def arrive() -> None:
            machine = self.machine
            if machine is None or self.now_s < self.stopped_until_s:
                self.after(peer, self._hop_s(), lambda: peer.dial_failed(native=native))
                return
            number = next(self._conn_numbers)
            self._conns[number] = Conn(peer, native)
            self._hand_in(machine, ConnUp(number, "127.0.0.1"))

            def connected() -> None:
                if number in self._conns:
                    peer.connected(number, native=native)
                else:
                    peer.dial_failed(native=native)

            self.after(peer, self._hop_s(), connected)

        self.at(self.now_s + self._hop_s(), arrive)

    def to_coordinator(self, number: int, body: object) -> None:
        conn, machine = self._conns.get(number), self.machine
        if conn is None or machine is None or not conn.up:
            return
        conn.last_up_s = max(conn.last_up_s, self.now_s + self._hop_s())
        kind: Any = NativeFrame if conn.native else PeerMessage
        event = kind(number, body)

        def arrive() -> None:
            if number in self._conns:
                self._hand_in(machine, event)

        self.at(conn.last_up_s, arrive)

    def _down(self, number: int, action: Callable[[ModelPeer], None]) -> None:
        conn = self._conns.get(number)
        if conn is None:
            return
        conn.last_down_s = max(conn.last_down_s, self.now_s + self._hop_s())
        peer = conn.peer
        delay_s = conn.last_down_s - self.now_s
        # Bytes sent before a connection ends still arrive; those to a dead process do not.
        self.after(peer, delay_s, lambda: action(peer))

    def _close_down(self, number: int) -> None:
        conn = self._conns.pop(number, None)
        if conn is not None:
            delay_s = max(conn.last_down_s, self.now_s + self._hop_s()) - self.now_s
            self.after(conn.peer, delay_s, lambda: conn.peer.disconnected(number))

    def _break(self, number: int, *, tell_coordinator: bool) -> None:
        conn = self._conns[number]
        conn.up = False
        machine = self.machine
        if tell_coordinator and machine is not None:

            def down() -> None:
                if self._conns.pop(number, None) is not None:
                    self._hand_in(machine, ConnDown(number))

            # Its last words are read before the end of the stream, unless a reset destroys them.
            whole_s = max(conn.last_up_s, self.now_s + self._hop_s())
            reset_s = self.now_s + self._hop_s()
            self.at(self.rng.choice((whole_s, reset_s)), down)
        self.after(conn.peer, self._hop_s(), lambda: conn.peer.disconnected(number))

    def cut_connection(self, peer: ModelPeer, *, native: bool) -> None:
        number = peer.native if native else peer.agent
        if number is not None and number in self._conns:
            self.note(f"{peer} loses its {'native' if native else 'agent'} connection")
            self._break(number, tell_coordinator=True)

    # ------------------------------------------------------------ peers

    def start_peer(self) -> ModelPeer:
        index = len(self.peers)
        peer = ModelPeer(self, index.to_bytes(1, "little") + self.rng.randbytes(15))
        self.peers.append(peer)
        return peer

    def make_engine(
        self, peer_id: bytes, incarnation: int, hooks: Hooks
    ) -> ModelEngine | NativeEngine:
        if self.native:
            return NativeEngine(
                peer_id, incarnation, hooks, lambda i: self._by_incarnation[i].peer_id
            )
        return ModelEngine(incarnation, hooks)

    def living(self) -> list[ModelPeer]:
        return [p for p in self.peers if p.alive]

    def kill(self, peer: ModelPeer) -> None:
        if not peer.alive:
            return
        self.note(f"{peer} is killed")
        peer.alive, peer.killed_s = False, self.now_s
        for number, conn in list(self._conns.items()):
            if conn.peer is peer:
                self._break(number, tell_coordinator=True)

    def stop(self, peer: ModelPeer, duration_s: float) -> None:
        self.note(f"{peer} stops for {duration_s:.2f} s")
        peer.stopped_until_s = max(peer.stopped_until_s, self.now_s + duration_s)

    def process_ended(self, peer: ModelPeer, *, told: bool) -> None:
        if peer.alive:
            self.note(f"{peer} ends")
            self.told_count += told and not peer.leaving
            self.kill(peer)

    def admitted(self, peer: ModelPeer) -> None:
        assert peer.engine is not None
        incarnation = peer.engine.incarnation
        assert incarnation not in self._by_incarnation, "an incarnation was given twice"
        self._by_incarnation[incarnation] = peer

    def reachable(self, incarnation: int) -> bool:
        peer = self._by_incarnation.get(incarnation)
        return peer is not None and peer.alive

    def to_peer(self, sender: ModelPeer, receiver: int, message: Post | Done) -> None:
        """Delivers, unless the sender was killed and the reset destroyed what was under way."""
        peer = self._by_incarnation[receiver]
        pair = (id(sender), receiver)
        slowness = self._slowness.setdefault(pair, self.rng.choice((0.3, 1.0, 1.0, 4.0)))
        self._pair_s[pair] = max(self._pair_s.get(pair, 0.0), self.now_s + slowness * self._hop_s())

        def arrive() -> None:
            if sender.alive or self.now_s < self._cut_s.setdefault(pair, self._cut(sender)):
                peer.on_peer(message)

        self.after(peer, self._pair_s[pair] - self.now_s, arrive)

    def _cut(self, sender: ModelPeer) -> float:
        return sender.killed_s + self.rng.uniform(0, 4) * self.delay_s

    def note(self, text: str) -> None:
        self.trace.append(f"{self.now_s:8.4f} {text}")
