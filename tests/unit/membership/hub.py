"""A coordinator under test, and peers that say exactly what a story makes them say."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pccl.membership.coordinator import Coordinator
from pccl.membership.core import CoordinatorConfig
from pccl.membership.events import (
    Close,
    ConnDown,
    ConnUp,
    Dialled,
    Effect,
    Event,
    NativeFrame,
    Paused,
    PeerMessage,
    Persist,
    ProbeListener,
    Send,
    SendNative,
)
from pccl.membership.messages import (
    PROTOCOL_VERSION,
    Activate,
    Admitted,
    AtEntry,
    Drain,
    Hello,
    Hold,
    HoldFrom,
    Install,
    Installed,
    LinksUp,
    PeerMessageBody,
    StatusReply,
    StatusRequest,
    Switched,
    ViewPlan,
)
from pccl.membership.store import MemoryDisk, MemoryStore
from pccl.transport.native_frames import Flush, Frame, Heartbeat, NativeHello, OpenStep, Report

T = TypeVar("T")
DIGEST = bytes(range(16))


@dataclass
class FakePeer:
    """A peer as the coordinator sees it; keeps what it was sent, oldest first."""

    hub: Hub
    peer_id: bytes
    agent: int = 0
    native: int = 0
    incarnation: int = 0
    secret: bytes = b""
    epoch: int = 0
    status: dict[str, Any] = field(default_factory=dict)  # of every beat: fields of Heartbeat
    inbox: list[object] = field(default_factory=list)
    closed: set[int] = field(default_factory=set)

    def hello(self, **changes: object) -> None:
        fields: dict[str, object] = {
            "protocol": PROTOCOL_VERSION,
            "run_id": b"",
            "peer_id": self.peer_id,
            "incarnation": self.incarnation,
            "generation": 0,
            "epoch": self.epoch,
            "data_host": "",
            "data_port": 5000 + self.peer_id[0],
            "host_key": 7,
            "min_world": 0,
            "hostname": "host",
            "pid": 1,
            "secret": self.secret,
        }
        self.agent = self.hub.connect(self)
        self.say(Hello(**{**fields, **changes}))  # type: ignore[arg-type]
        answer = self.last(Admitted)
        if answer is not None:
            self.incarnation, self.secret = answer.incarnation, answer.secret

    def native_hello(
        self,
        secret: bytes | None = None,
        purpose: int = 0,
        generation: int = 0,
        epoch: int | None = None,
    ) -> None:
        self.native = self.hub.connect(self)
        run_id = self.hub.machine.run_id
        known = self.secret if secret is None else secret
        names = (self.peer_id, self.incarnation, known)
        said = self.epoch if epoch is None else epoch
        self.tell(NativeHello(purpose, run_id, *names, generation=generation, epoch=said))

    def say(self, msg: PeerMessageBody) -> None:
        self.hub.handle(PeerMessage(self.agent, msg))

    def tell(self, frame: Frame) -> None:
        self.hub.handle(NativeFrame(self.native, frame))

    def beat(
        self, epoch: int | None = None, down: Sequence[bytes] = (), watermark: int = 0
    ) -> None:
        said = self.epoch if epoch is None else epoch
        beat = Heartbeat(1, said, watermark, watermark, 0, down=tuple(down))
        self.tell(replace(beat, **self.status))

    def relayed_by(self, other: FakePeer) -> None:
        """What a table of routes does when the relay works: the link is not down any more."""
        down = tuple(i for i in self.status.get("down", ()) if i != other.peer_id)
        relayed = (*self.status.get("relayed", ()), other.peer_id)
        self.status = {**self.status, "down": down, "relayed": relayed}

    def switch(self, epoch: int, step: int) -> None:
        """Begins the step in the activated view."""
        self.epoch = epoch
        self.say(Switched(epoch, step))

    def lose(self, *, agent: bool = False, native: bool = False) -> None:
        for conn in (self.agent if agent else 0, self.native if native else 0):
            if conn:
                self.hub.handle(ConnDown(conn))

    def last(self, kind: type[T]) -> T | None:
        return next((m for m in reversed(self.inbox) if isinstance(m, kind)), None)

    def got(self, kind: type[T]) -> T:
        """Returns the newest message of this kind and forgets all before."""
        message = self.last(kind)
        assert message is not None, f"no {kind.__name__} in {self.inbox}"
        self.inbox.clear()
        return message

    def install(self) -> Install:
        message = self.got(Install)
        self.epoch = message.epoch
        self.say(Installed(message.epoch))
        return message

    def report(
        self,
        *opened: OpenStep,
        watermark: int = 0,
        committed: Sequence[int] = (),
        switched: int | None = None,
    ) -> None:
        flush = self.last(Flush)
        assert flush is not None, "nobody asked for a report"
        next_step = max([watermark, *(o.step + 1 for o in opened)])
        self.tell(
            Report(
                flush.generation,
                flush.target,
                self.epoch,
                switched is not None,
                switched or 0,
                watermark,
                next_step,
                tuple(committed),
                opened,
            )
        )


def opened(
    step: int, epoch: int, *, complete: bool = False, waiting: bool = False, digest: bytes = DIGEST
) -> OpenStep:
    return OpenStep(step, epoch, complete, complete, waiting, DIGEST, digest, 0)


class Hub:
    """The world around one coordinator: connections are numbers, time is a variable."""

    def __init__(self, disk: MemoryDisk | None = None, **config: object) -> None:
        self.disk = MemoryDisk() if disk is None else disk
        self.config = CoordinatorConfig(**config)  # type: ignore[arg-type]
        self.now_s = 100.0
        self.effects: list[Effect] = []
        self._owners: dict[int, FakePeer] = {}
        self._peers = 0
        self._conns = 0
        self.host = "10.0.0.9"  # where the next connection comes from
        self.start()

    def start(self) -> None:
        """Starts the coordinator (again) on what the store holds; connections are gone."""
        self._owners.clear()
        self.store = MemoryStore(self.disk)
        self.machine = Coordinator(
            self.config,
            generation=self.store.generation,
            record=self.store.load(),
            token_bytes=random.Random(self.store.generation).randbytes,
            now_s=self.now_s,
        )
        self.carry_out(self.machine.on_deadline(self.now_s))

    def handle(self, event: Event) -> None:
        self.carry_out(self.machine.handle(event, self.now_s))

    def carry_out(self, effects: list[Effect]) -> None:
        self.effects += effects
        for effect in effects:
            match effect:
                case Send(conn, body) | SendNative(conn, body):
                    if conn in self._owners:
                        self._owners[conn].inbox.append(body)
                case Close(conn):
                    if conn in self._owners:
                        self._owners.pop(conn).closed.add(conn)
                case Persist(_, record):
                    self.store.save(record)

    def pass_time(self, seconds: float, *, beating: Sequence[FakePeer] = ()) -> None:
        """Turns the clock; who beats does so every quarter of a second."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s = min(self.now_s + 0.25, until_s)
            for peer in beating:
                peer.beat()
            while (deadline_s := self.machine.deadline_s) is not None and deadline_s <= self.now_s:
                self.carry_out(self.machine.on_deadline(self.now_s))
                assert self.machine.deadline_s != deadline_s, "the deadline does not move"

    def pause(self, seconds: float) -> None:
        """The coordinator itself does not run for a while."""
        self.now_s += seconds
        self.handle(Paused(seconds))

    def status(self) -> dict[str, Any]:
        """What `pccl status` would print."""
        asker = self.peer()
        asker.agent = self.connect(asker)
        asker.say(StatusRequest())
        document: dict[str, Any] = json.loads(asker.got(StatusReply).json)
        return document

    def connect(self, peer: FakePeer) -> int:
        self._conns += 1
        self._owners[self._conns] = peer
        self.handle(ConnUp(self._conns, self.host))
        return self._conns

    def peer(self) -> FakePeer:
        """Makes a process that has not said anything yet."""
        self._peers += 1
        return FakePeer(self, bytes([self._peers]) * 16)

    def learner(self, **changes: object) -> FakePeer:
        """Makes an admitted peer with both connections."""
        peer = self.peer()
        peer.hello(**changes)
        peer.native_hello()
        return peer

    def members(self, count: int) -> list[FakePeer]:
        """Makes a first view of this many members, installed everywhere."""
        peers = [self.learner() for _ in range(count)]
        for peer in peers:
            peer.say(AtEntry("step", 0))
        for peer in peers:
            peer.say(LinksUp(peer.got(ViewPlan).epoch))
        for peer in peers:
            peer.install()
        return peers

    def join(self, members: Sequence[FakePeer], joiner: FakePeer, *, step: int) -> int:
        """Takes a learner through a whole planned join; returns the epoch."""
        joiner.say(AtEntry("step", 0))
        epoch = joiner.got(ViewPlan).epoch
        for peer in (*members, joiner):
            peer.say(LinksUp(epoch))
        for peer in members:
            peer.say(HoldFrom(epoch, step))
        for peer in members:
            assert peer.got(Activate).step == step
            peer.epoch = epoch
            peer.say(Switched(epoch, step))
        joiner.install()
        return epoch

    def plan_out(self, members: Sequence[FakePeer], leaver: FakePeer, *, step: int) -> int:
        """Takes a member through a planned leave until all are told; returns the epoch."""
        leaver.say(Drain(30.0, "enough"))
        epoch = members[0].got(Hold).epoch
        for peer in members:
            peer.say(HoldFrom(epoch, step))
        for peer in members:
            told = peer.got(Activate)
            assert (told.epoch, told.step, told.name) == (epoch, step, "")
        return epoch

    def dead(self, peer: FakePeer) -> None:
        """Answers the probe of the peer's port: refused."""
        self.handle(Dialled(peer.peer_id, peer.incarnation, alive=False))

    def kill(self, peer: FakePeer) -> None:
        """Ends the process: both connections, and the probe of its port is refused."""
        peer.lose(agent=True, native=True)
        self.dead(peer)

    def probes(self, peer: FakePeer) -> int:
        return sum(
            isinstance(e, ProbeListener) and e.incarnation == peer.incarnation for e in self.effects
        )
