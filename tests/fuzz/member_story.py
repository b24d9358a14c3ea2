"""Fuzz target: bytes become events for a member machine, which must keep its promises.

The coordinator behind it is anyone: old, new, lying, or gone.
"""

from __future__ import annotations

import math

from pccl.membership.member import Member, Phase
from pccl.membership.member_events import (
    Connected,
    Dial,
    Disconnected,
    Drain,
    Effect,
    Event,
    Held,
    HoldEngine,
    Identity,
    InstallView,
    Leave,
    Progress,
    Received,
    Send,
    WantWorld,
)
from pccl.membership.message_parts import EPOCH_MAX
from pccl.membership.messages import (
    Admitted,
    CoordinatorMessageBody,
    coordinator_codec,
    peer_codec,
)
from pccl.transport.engine_events import EngineEvent, EntryReached, LinksUnreachable, ViewInstalled
from tests.fuzz.drawing import FLOATS, Known, Source, draw_or_none

EVENTS_MAX = 400
ME = bytes(range(16))


class Story:
    def __init__(self, data: bytes) -> None:
        self.source = Source(data)
        self.known = Known()
        self.now_s = 100.0
        self.machine = Member(
            Identity(ME, "", 5000, 7),
            now_s=self.now_s,
            connect_timeout_s=10.0,
            coordinator_grace_s=None if self.source.chance(2) else 5.0,
            dice=lambda: self.source.byte() / 256,
        )
        self.installed = (0, 0)

    def run(self) -> None:
        for _ in range(EVENTS_MAX):
            if not self.source:
                break
            event = self._draw()
            ended = self.machine.phase is Phase.ENDED
            effects = [] if event is None else self.machine.handle(event, self.now_s)
            self._check(effects, ended)
            if self.source.chance(4):
                self._pass_time()

    def _pass_time(self) -> None:
        self.now_s += self.source.below(64) / 4
        for _ in range(64):
            deadline_s = self.machine.deadline_s
            if deadline_s is None or deadline_s > self.now_s:
                return
            ended = self.machine.phase is Phase.ENDED
            self._check(self.machine.on_deadline(self.now_s), ended)
        raise AssertionError("a deadline that does not move")

    def _draw(self) -> Event | None:
        source = self.source
        match source.below(12):
            case 0:
                return Connected("10.0.0.1", 5)
            case 1:
                return Disconnected("gone", foreign=source.chance(16))
            case 2:
                return Received(self._admitted())
            case 3 | 4 | 5 | 6 | 7:
                message = draw_or_none(CoordinatorMessageBody, source, self.known)
                if message is None:
                    return None
                coordinator_codec.encode(message)
                self.known.note(message)
                return Received(message)
            case 8 | 9:
                event: EngineEvent | None = draw_or_none(EngineEvent, source, self.known)
                if isinstance(event, EntryReached):  # the face has checked the name
                    return EntryReached(source.pick(("step", "sync")), event.next_step)
                if getattr(event, "epoch", 0) > EPOCH_MAX:  # the engine's have 32 bits
                    return None
                if isinstance(event, LinksUnreachable):  # it names only members
                    peers = tuple(peer for peer in event.peers if len(peer) == len(ME))
                    return LinksUnreachable(event.epoch, peers)
                return event
            case 10:
                said: tuple[Event, ...] = (
                    Held(source.below(4), source.below(8), source.below(8)),
                    WantWorld(source.below(4)),
                    Progress(source.below(8)),
                )
                return source.pick(said)
            case _:
                if source.chance(8):
                    return Leave("", source.below(8))
                return Drain(source.pick((0.0, 3.0, 60.0)), "")

    def _admitted(self) -> Admitted:
        source = self.source
        epoch, count = source.below(4), source.below(4)
        admitted = Admitted(
            run_id=bytes(16),
            lineage=1,
            generation=1 + source.below(4),
            incarnation=1 + source.below(2),
            secret=bytes(16),
            min_world=1,
            heartbeat_s=0.25,
            lease_s=3.0,
            epoch=epoch,
            members=count,
            coordinator_grace_s=30.0,
        )
        self.known.note(admitted)
        return admitted

    def _check(self, effects: list[Effect], ended: bool) -> None:
        machine = self.machine
        assert not (ended and effects), "an effect after the end"
        assert not ended or machine.phase is Phase.ENDED, "alive again"
        deadline_s = machine.deadline_s
        assert deadline_s is None or math.isfinite(deadline_s)
        if machine.phase not in (Phase.ATTACHED, Phase.ENDED, Phase.DIALLING):
            assert deadline_s is not None, f"nothing ends {machine.phase}"
        for effect in effects:
            match effect:
                case Send(message):
                    assert peer_codec.decode(peer_codec.encode(message)) == message
                    self.known.note(message)
                case HoldEngine(generation, epoch):
                    self.known.note((generation, epoch))
                case InstallView(install):
                    asked = (install.generation, install.epoch)
                    assert asked[0] >= self.installed[0], "an older coordinator is obeyed"
                    # What another coordinator had said and the engine never confirmed, is nothing.
                    later = asked[0] > self.installed[0] or asked[1] >= self.installed[1]
                    assert later and asked[1] >= machine.views.epoch, "an epoch goes back"
                    self.installed = asked
                    if self.source.chance(2):
                        again = machine.handle(ViewInstalled(install.epoch), self.now_s)
                        self._check(again, machine.phase is Phase.ENDED)
                case Dial():
                    assert machine.phase is Phase.DIALLING
                case _:
                    pass


def member(data: bytes) -> None:
    Story(data).run()


assert all(math.isfinite(f) for f in FLOATS)  # the codec lets no other through
