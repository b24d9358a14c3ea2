"""Fuzz target: bytes become a story of connections, messages, faults and time for a coordinator.

Peers answer as they should, lie, or send whatever their fields allow; the coordinator is stopped
and starts anew from its record.  No event may raise, and after each one what docs/PROTOCOL.md
promises about what a coordinator says must hold, whoever said what to it.
"""

from __future__ import annotations

import math

from pccl.membership.events import (
    Close,
    ConnDown,
    ConnUp,
    Dialled,
    Effect,
    Event,
    NativeFrame,
    PeerMessage,
    Persist,
    Send,
    SendNative,
    Synced,
)
from pccl.membership.messages import (
    Activate,
    AtEntry,
    Drain,
    Evicted,
    Hold,
    HoldFrom,
    Install,
    Leaving,
    LinksUp,
    MemberInfo,
    PeerMessageBody,
    Switched,
    ViewPlan,
    coordinator_codec,
    peer_codec,
)
from pccl.membership.record import Record, record_codec
from pccl.transport import native_frames
from pccl.transport.native_frames import Flush, Frame, OpenStep
from tests.fuzz.drawing import Known, Source, draw_or_none
from tests.unit.membership.hub import DIGEST, FakePeer, Hub

PEERS_MAX = 6
EVENTS_MAX = 120
SAID_MAX = 64  # messages of which the values are known: a story stays fast


class Watched(Hub):
    """A hub that holds the coordinator to its word after every event."""

    def __init__(self, min_world: int) -> None:
        self.known = Known()
        self.members_of: dict[tuple[int, int], tuple[int, ...]] = {}  # by (lineage, epoch)
        self.closed: list[int] = []  # by the coordinator; that they are down, it hears later
        self.down: set[int] = set()
        self.record: Record | None = None
        super().__init__(min_world=min_world)

    def start(self) -> None:
        self.closed.clear()
        super().start()

    def handle(self, event: Event) -> None:
        match event:
            case ConnDown(conn):
                self.down.add(conn)
            case ConnUp(conn):
                self.down.discard(conn)
            case _:
                pass
        super().handle(event)

    def hear(self) -> None:
        """Lets the coordinator hear of the connections it has closed."""
        while self.closed:
            self.handle(ConnDown(self.closed.pop()))

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            self._check(effect)
        super().carry_out(effects)
        self.effects.clear()
        deadline_s = self.machine.deadline_s
        assert deadline_s is None or math.isfinite(deadline_s)

    def _check(self, effect: Effect) -> None:
        match effect:
            case Persist(_, record):
                assert record_codec.decode(record_codec.encode(record)) == record
                assert record.generation == self.store.generation
                self._check_record(record)
            case Send(conn, message):
                assert conn not in self.down, "a message on a connection that is down"
                assert coordinator_codec.decode(coordinator_codec.encode(message)) == message
                self.known.note(message)
                if isinstance(message, Install | Activate):
                    self._check_view(message.epoch, message.members)
                    assert message.generation == self.store.generation
            case SendNative(conn, frame):
                assert conn not in self.down, "a frame on a connection that is down"
                assert native_frames.decode(native_frames.encode(frame)) == frame
                self.known.note(frame)
            case Close(conn):
                self.closed.append(conn)
            case _:
                pass

    def _check_record(self, record: Record) -> None:
        before, self.record = self.record, record
        admitted = {peer.incarnation for peer in record.peers}
        views = [view for view in (record.view, *record.history) if view is not None]
        if record.view is not None:
            assert set(record.view.incarnations()) <= admitted, "a member without admission"
        for view in views:
            assert view.epoch <= record.epochs_reserved
        if before is None:
            return
        assert record.incarnations >= before.incarnations
        assert record.epochs_reserved >= before.epochs_reserved
        assert record.lineage >= before.lineage
        if record.lineage == before.lineage and before.view is not None:
            assert record.view is not None and record.view.epoch >= before.view.epoch

    def _check_view(self, epoch: int, members: tuple[MemberInfo, ...]) -> None:
        assert self.record is not None, "a view before any record"
        assert epoch <= self.record.epochs_reserved, "an epoch that a restart could name again"
        incarnations = tuple(sorted(m.incarnation for m in members))
        first = self.members_of.setdefault((self.record.lineage, epoch), incarnations)
        assert first == incarnations, f"epoch {epoch} with two sets of members"


class Story:
    def __init__(self, data: bytes) -> None:
        self.source = Source(data)
        self.min_world = self.source.below(4)
        self.hub = Watched(self.min_world)
        self.peers: list[FakePeer] = []

    def run(self) -> None:
        if self.source.chance(2):
            self.peers += self.hub.members(max(1, self.min_world) + self.source.below(3))
        for _ in range(EVENTS_MAX):
            if not self.source:
                break
            self._event()
            if self.source.chance(2):
                self.hub.hear()
            if not self.source.chance(4):
                for peer in self.peers:
                    self._answer(peer)

    def _event(self) -> None:
        source, hub = self.source, self.hub
        peer = source.pick(self.peers) if self.peers else None
        kind = source.below(20)
        if peer is None or (kind <= 1 and len(self.peers) < PEERS_MAX):
            self.peers.append(self._newcomer())
        elif kind <= 4:
            peer.say(AtEntry(source.pick(("step", "step", "sync")), 0))
        elif kind <= 6:
            peer.beat(watermark=source.below(12))
        elif kind <= 9:
            beating = [p for p in self.peers if not source.chance(8)]
            hub.pass_time(source.below(20) / 4, beating=beating)
        elif kind == 10:
            peer.lose(agent=source.chance(2), native=source.chance(2))
        elif kind == 11:
            peer.hello()
            peer.native_hello()
        elif kind <= 13:
            self._say(peer)
        elif kind <= 15:
            self._tell(peer)
        elif kind == 16:
            self._fault(peer)
        elif kind == 17:
            self._connection()
        elif kind == 18 and source.chance(2):
            peer.say(Leaving("", source.below(12)))
        else:
            peer.say(Drain(float(source.below(40)), ""))

    def _newcomer(self) -> FakePeer:
        peer = self.hub.peer()
        if self.source.chance(8):  # two processes claim to be the same one
            peer.peer_id = bytes([1 + self.source.below(4)]) * 16
        if self.source.chance(4):
            peer.hello(group=self.source.below(3), min_world=self.source.below(3))
        else:
            peer.hello()
        peer.native_hello()
        return peer

    def _answer(self, peer: FakePeer) -> None:
        """What a member does with what it was told, up to lies about steps."""
        inbox, source = list(peer.inbox), self.source
        peer.inbox.clear()
        for message in inbox[-8:]:
            match message:
                case Evicted():  # its program starts anew
                    peer.incarnation, peer.secret, peer.epoch = 0, b"", 0
                    if source.chance(2):
                        peer.hello()
                        peer.native_hello()
                        return
                case ViewPlan():
                    peer.say(LinksUp(message.epoch))
                case Hold():
                    peer.say(HoldFrom(message.epoch, source.below(10)))
                case Activate():
                    peer.epoch = max(peer.epoch, message.epoch)
                    late = source.byte() // 250
                    peer.say(Switched(message.epoch, message.step + late))
                case Install():
                    peer.inbox.append(message)
                    peer.install()
                case Flush():
                    peer.inbox.append(message)
                    self._report(peer)
                case _:
                    pass

    def _report(self, peer: FakePeer) -> None:
        source = self.source
        watermark = source.below(10)
        opened = [
            OpenStep(
                watermark + n,
                max(0, peer.epoch - source.below(2)),
                (complete := source.chance(2)),
                complete,
                not complete and source.chance(4),
                DIGEST,
                bytes([source.below(2)]) * 16,
                0,
            )
            for n in range(source.below(4))
        ]
        peer.report(*opened, watermark=watermark)

    def _say(self, peer: FakePeer) -> None:
        message = self._message()
        if message is not None:
            peer.say(message)

    def _message(self) -> PeerMessageBody | None:
        """Any message that could come over the wire."""
        message: PeerMessageBody | None
        message = draw_or_none(PeerMessageBody, self.source, self.hub.known)
        return None if message is None else peer_codec.decode(peer_codec.encode(message))

    def _frame(self) -> Frame | None:
        """Any frame that could come over the wire."""
        try:
            frame = draw_or_none(native_frames.Frame, self.source, self.hub.known)
            return native_frames.decode(native_frames.encode(frame))
        except ValueError:
            return None

    def _tell(self, peer: FakePeer) -> None:
        frame = self._frame()
        if frame is not None:
            peer.tell(frame)

    def _fault(self, peer: FakePeer) -> None:
        source, hub = self.source, self.hub
        match source.below(5):
            case 0:
                hub.kill(peer)
            case 1:
                hub.pause(source.below(256) / 8)
            case 2:
                hub.start()
                for known in self.peers:
                    known.agent = known.native = 0
                    if source.chance(2):
                        known.hello()
                        known.native_hello()
            case 3:
                hub.handle(Dialled(peer.peer_id, source.below(8), alive=source.chance(2)))
            case _:
                hub.handle(Synced(source.below(8)))

    def _connection(self) -> None:
        """Connections that nobody in the story owns."""
        source, hub = self.source, self.hub
        conn = 1000 + source.below(4)
        match source.below(4):
            case 0:
                hub.handle(ConnUp(conn, source.pick(("10.0.0.9", "::1"))))
            case 1:
                hub.handle(ConnDown(conn))
            case 2:
                message = self._message()
                if message is not None:
                    hub.handle(PeerMessage(conn, message))
            case _:
                frame = self._frame()
                if frame is not None:
                    hub.handle(NativeFrame(conn, frame))


def coordinator(data: bytes) -> None:
    Story(data).run()
