"""Processes whose shells are the shipped ones: CoordinatorService, and MemberAgent's loop."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from pccl.membership import member_events as e
from pccl.membership.agent import AgentConfig, MemberAgent, Seat
from pccl.membership.events import ConnDown
from pccl.membership.messages import coordinator_codec
from pccl.membership.record import Record
from pccl.membership.service_driver import CoordinatorService
from pccl.membership.store import StoreError
from pccl.transport import native_frames
from pccl.transport.address import Address
from pccl.transport.engine_events import EngineEvent
from pccl.transport.framing import Framer, frame
from tests.sim.control_link import NativeEnd
from tests.sim.coordinator_process import CoordinatorProcess
from tests.sim.drivers.loop import EVENT_FD, PEER_PORT_FIRST, VirtualLoop
from tests.sim.drivers.streams import Accepted
from tests.sim.durability import check_is_durable
from tests.sim.peer_process import CONNECT_TIMEOUT_S, PeerProcess
from tests.sim.world import Wire, World

if TYPE_CHECKING:
    from tests.sim.engine import SimEngine

FRAME_BYTES_MAX: Final = 1 << 20
TURNS_PER_BATCH: Final = 5  # a crash comes within so many turns of the loop per batch of effects


class DriverCoordinator(CoordinatorProcess):
    """The service on a loop of its own."""

    def _begin(self) -> None:
        self.loop = VirtualLoop(self.world, self)
        self.loop.dial = self._dial_peer
        self.loop.in_executor = self._in_journal
        self.loop.on_last_turn = self._crash
        self._accepted: dict[Wire, Accepted] = {}
        self._said: dict[Wire, Framer] = {}
        self._queued: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._disk_free_s = self.world.now_s
        self.service = CoordinatorService(
            self.machine, self._write, settle=self.store.settle, clock=self.loop.time
        )
        self._hand_over = self.service._journal.write
        self.service._journal.write = self._issued  # type: ignore[method-assign]
        self.running = self.loop.create_task(self.service.run())
        self.running.add_done_callback(self._ended)

    @property
    def held(self) -> int:
        return self.service._outbox.held

    def ended_unsaid(self) -> set[int]:
        """Connections that are over, of which the machine does not learn so."""
        inbox = self.service._inbox
        queued = (*inbox._members, *inbox._strangers)
        told = {event.conn for event in queued if isinstance(event, ConnDown)}
        return set(self.machine._core.conns) - set(self.service._connections) - told

    # ------------------------------------------------------------ connections

    def accept(self, wire: Wire) -> None:
        self._arm_crash()
        accepted = self._accepted[wire] = Accepted(wire)
        self._said[wire] = Framer(
            first_frame_bytes_max=FRAME_BYTES_MAX, frame_bytes_max=FRAME_BYTES_MAX
        )
        self.wires[len(self.wires) + self._next_number] = wire
        self._next_number += 1
        self.loop.call_soon(self.service._server._take, accepted, None)

    def receive(self, wire: Wire, message: Any) -> None:
        self._arm_crash()
        if wire in self._accepted:
            self._accepted[wire].feed(message)

    def lost(self, wire: Wire) -> None:
        accepted = self._accepted.pop(wire, None)
        if accepted is not None:
            self.world.forget_wire(wire)
            accepted.lost()

    def said(self, wire: Wire, data: bytes) -> None:
        """Bytes leave: what they say must be on disk."""
        framer = self._said[wire]
        framer.feed(data)
        while (body := framer.next_message()) is not None:
            codec: Any = coordinator_codec if wire.kind == "agent" else native_frames
            message = codec.decode(body)
            self.world.note("{} -> {}: {}", self, wire.peer, message)
            check_is_durable(self, message)
            self.check_says(message)

    def _dial_peer(self, port: int, answer: Callable[[Wire | None], None]) -> None:
        """A probe.  A peer that answers is enough; nothing is said over that connection."""
        world, peer = self.world, self.world.peers[port - PEER_PORT_FIRST]
        cut_s = max(world.blocked_until_s(("native", peer.index, way)) for way in ("up", "down"))
        if peer.vanished or cut_s > world.now_s:
            return  # until the dial is given up

        def arrive() -> None:
            found = Wire(peer, self, "probe") if peer.alive else None
            world.at(world.now_s + world.hop_s(), self, answer, found)

        world.at(world.now_s + world.hop_s(), None, arrive)

    # ------------------------------------------------------------ the journal

    def _issued(self, token: int, record: Record) -> None:
        """Records share a write: what is said may rest on one that another one replaced."""
        if not self.is_copy:
            self.world.history.recorded(record)
        self._hand_over(token, record)

    def _write(self, record: Record) -> None:
        self.store.save(record)
        self.durable = record
        self.disk.saved(record)

    def _in_journal(self, work: Any, future: asyncio.Future[Any]) -> None:
        world = self.world
        if work.args:  # else the journal is only settled
            assert not self.machine.outdated, f"{self} writes though its journal is outdated"
        self._queued.append((work, future))
        took_s = 2 * world.rng.random() * world.script.fsync_s
        self._disk_free_s = max(self._disk_free_s, world.now_s) + took_s
        world.at(self._disk_free_s, self, self._written_one)

    def _written_one(self) -> None:
        work, future = self._queued.popleft()
        try:
            work()
        except StoreError as error:
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(None)

    # ------------------------------------------------------------ its end

    def _arm_crash(self) -> None:
        if self.dies_in and not self.loop.turns_left:
            self.loop.turns_left = self.dies_in * TURNS_PER_BATCH

    def _crash(self) -> None:
        self.world.note("{} dies between two turns of its loop", self)
        self.die(self.world.rng.random())

    def _ended(self, task: asyncio.Task[None]) -> None:
        """It stopped by itself: deposed, or cancelled."""
        error = None if task.cancelled() else task.exception()
        self.world.note("{} ends: {}", self, error)
        self.die(0.0)

    def exclude(self, number: int) -> None:
        def act() -> None:
            core = self.machine._core
            members = core.members()
            if members:
                core.now_s = self.world.now_s
                core.exclude(members[number % len(members)], "others have waited for it")
                self.service._perform(self.machine.on_deadline(self.world.now_s))

        if self.alive and self.stopped_until_s <= self.world.now_s:
            self.loop.call_soon(act)

    def cancel(self) -> None:
        """It is told to stop, as by a signal."""
        self.loop.call_soon(self.running.cancel)

    def stop(self, duration_s: float) -> None:
        world = self.world
        if self.alive and world.now_s >= self.stopped_until_s:
            world.note("{} stops for {:.2f} s", self, duration_s)
            self.stopped_until_s = world.now_s + duration_s  # the service sees that by itself

    def die(self, written: float, *, silently: bool = False) -> None:
        if self.alive:
            for work, _ in list(self._queued)[: round(written * len(self._queued))]:
                try:
                    work()
                except StoreError:
                    break
            self._queued.clear()
        super().die(0.0, silently=silently)


class DriverPeer(PeerProcess):
    """The member agent on a loop of its own, in the place of its thread."""

    def _start(self) -> None:
        self._engine_events: list[EngineEvent] = []
        self.loop = VirtualLoop(self.world, self)
        self.loop.dial = self._dial_coordinator
        self.loop.on_last_turn = self.die
        config = AgentConfig(
            addresses=(Address("127.0.0.1", 9000),),
            peer_id=self.peer_id,
            host_key=0,
            min_world=0,
            group=self.group,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            coordinator_grace_s=None,
        )
        self.member_agent = MemberAgent(
            config,
            self._make_seat,
            clock=self.loop.time,
            dice=random.Random(self.world.rng.random()),
        )
        self.living = self.loop.create_task(self.member_agent.live())
        self.living.add_done_callback(self._over)

    def _make_seat(self, local_host: str) -> Seat:
        return Seat(_EngineOf(self), "127.0.0.1", PEER_PORT_FIRST + self.index)

    @property
    def phase(self) -> str:
        machine = self.member_agent._machine
        return "connecting" if machine is None else machine.phase.value

    def engine_event(self, event: EngineEvent) -> None:
        self._engine_events.append(event)
        self.loop.readable(EVENT_FD)

    def drain_events(self) -> list[EngineEvent]:
        drained, self._engine_events = self._engine_events, []
        return drained

    def tell_member(self, event: e.Event) -> None:
        if isinstance(event, e.Leave):
            self.leaving = True
            if self.member_agent._machine is None:  # as MemberAgent.stop does
                self.loop.call_soon(self.living.cancel)
                return
        if isinstance(event, e.Drain):
            self.draining = True
        self.loop.call_soon(self.member_agent._post, event)

    def _dial_coordinator(self, port: int, answer: Callable[[Wire | None], None]) -> None:
        if self.dies_in and not self.loop.turns_left:
            self.loop.turns_left = self.dies_in * TURNS_PER_BATCH
        self.world.dial(self, "agent", answer)

    def dial_native(self, answer: Callable[[NativeEnd | None], None]) -> None:
        def dialled(wire: Wire | None) -> None:
            answer(None if wire is None else ByteEnd(self.world, wire))

        self.world.dial(self, "native", dialled)

    def _over(self, task: asyncio.Task[None]) -> None:
        standing = self.member_agent.standing
        code = "closed" if standing.ended is None else standing.ended.code
        failure = standing.failure
        self._end(code if failure is None else f"failed: {failure}")


class _EngineOf:
    """An engine with the descriptor that the agent watches."""

    event_fd = EVENT_FD

    def __init__(self, peer: DriverPeer) -> None:
        self._peer = peer

    def drain_events(self) -> list[EngineEvent]:
        return self._peer.drain_events()

    def __getattr__(self, name: str) -> Any:
        engine: SimEngine = self._peer.engine
        return getattr(engine, name)


class ByteEnd:
    """A peer's end of a native connection, in bytes."""

    def __init__(self, world: World, wire: Wire) -> None:
        self._world = world
        self._wire = wire
        self._framer = Framer(
            first_frame_bytes_max=FRAME_BYTES_MAX, frame_bytes_max=FRAME_BYTES_MAX
        )

    def attach(self, on_frame: Callable[[Any], None], on_closed: Callable[[], None]) -> None:
        def on_bytes(data: bytes) -> None:
            self._framer.feed(data)
            while (body := self._framer.next_message()) is not None:
                on_frame(native_frames.decode(body))

        self._wire.on_message, self._wire.on_closed = on_bytes, on_closed

    def send(self, message: Any) -> None:
        body = native_frames.encode(message)
        self._world.send_up(self._wire, frame(body, frame_bytes_max=FRAME_BYTES_MAX))

    def close(self) -> None:
        self._world.close_up(self._wire)
