"""A model of the native control connection: native/src/control/coordinator_link.cpp, call by call.

It dials by itself, beats, answers FLUSH from behind the fence, and keeps suspicions until they are
said.  How frames travel is the peer's affair: objects over a Wire, or bytes over a stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from pccl.transport.engine_events import NativeFollows, NativeLink
from pccl.transport.native_frames import (
    EvictedFrame,
    Flush,
    Frame,
    Heartbeat,
    NativeHello,
    Pong,
    RefusalCode,
    RefusedFrame,
    Routes,
    Suspect,
    Waiting,
    Welcome,
)

if TYPE_CHECKING:
    from tests.sim.engine import SimEngine
    from tests.sim.peer_process import PeerProcess
    from tests.sim.world import World

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 2.0
BACKOFF_HEARTBEATS_MAX: Final = 2.0
HANDSHAKE_S: Final = 5.0
SUSPICIONS_MAX: Final = 64


class NativeEnd(Protocol):
    """This end of one native connection."""

    def attach(self, on_frame: Callable[[Frame], None], on_closed: Callable[[], None]) -> None: ...
    def send(self, frame: Frame) -> None: ...
    def close(self) -> None: ...


class ControlLink:
    def __init__(self, world: World, peer: PeerProcess, engine: SimEngine) -> None:
        self.world = world
        self.peer = peer
        self.engine = engine
        self.stage = "off"  # waiting, connecting, greeting, up
        self._end: NativeEnd | None = None
        self._backoff_s = BACKOFF_FIRST_S
        self._life = 0  # of the connection; what an older one reports is void
        self._hello: tuple[bytes, int, bytes] | None = None
        self._heartbeat_s = 0.25
        self._greeted = 0  # of the coordinator that either connection has found last
        self._followed = 0  # never goes down
        self._suspicions: deque[Suspect] = deque()
        self._told: deque[Suspect] = deque(maxlen=SUSPICIONS_MAX)  # perhaps to a coordinator's ruin

    def admit(
        self, run_id: bytes, incarnation: int, secret: bytes, heartbeat_s: float, generation: int
    ) -> None:
        self._hello = (run_id, incarnation, secret)
        self._greeted = generation
        self._heartbeat_s = heartbeat_s
        self._close()
        self._backoff_s = BACKOFF_FIRST_S
        self._dial(self._life)

    def shut(self) -> None:
        self.stage = "off"  # for good: that is no loss
        self._close()
        self.stage = "off"

    # ------------------------------------------------------------ connecting

    def _dial(self, life: int) -> None:
        if life != self._life:
            return
        self.stage = "connecting"
        self.peer.dial_native(partial(self._dialled, life))

    def _dialled(self, life: int, end: NativeEnd | None) -> None:
        if life != self._life or self.stage != "connecting":
            if end is not None:
                end.close()
            return
        if end is None:
            self._lose()
            return
        assert self._hello is not None
        run_id, incarnation, secret = self._hello
        self._end = end
        end.attach(self.on_frame, partial(self._closed, life))
        self.stage = "greeting"
        names = (self.peer.peer_id, incarnation, secret)
        newest, epoch = self._newest_followed(), self.engine.epoch
        self.send(NativeHello(0, run_id, *names, generation=newest, epoch=epoch))
        self.world.at(self.world.now_s + HANDSHAKE_S, self.peer, self._late, life)

    def send(self, frame: Frame) -> None:
        if self._end is not None:
            self._end.send(frame)

    def _late(self, life: int) -> None:
        if life == self._life and self.stage == "greeting":
            self._lose()

    def _closed(self, life: int) -> None:
        if life == self._life and self.stage in ("greeting", "up"):
            self._lose()

    def _close(self) -> None:
        self._life += 1
        if self.stage == "up":
            self.engine.emit(NativeLink(False, self._greeted))
        self.stage = "waiting"
        end, self._end = self._end, None
        if end is not None:
            end.close()

    def _lose(self) -> None:
        self._close()
        self.world.at(self.world.now_s + self._backoff_s, self.peer, self._dial, self._life)
        most_s = min(BACKOFF_HEARTBEATS_MAX * self._heartbeat_s, BACKOFF_MAX_S)
        most_s = max(most_s, BACKOFF_FIRST_S)
        self._backoff_s = min(2 * self._backoff_s, most_s)

    # ------------------------------------------------------------ frames

    def on_frame(self, frame: Frame) -> None:
        match frame:
            case EvictedFrame(generation, _) if self.is_past(generation):
                self._lose()
            case EvictedFrame(_, text):
                self.shut()
                self.engine.evicted(text)
            case RefusedFrame(code, text):
                self.engine.refused(code, text)
                if code == RefusalCode.INCARNATION:
                    self.shut()
                    self.engine.evicted(text)
                else:
                    self._lose()
            case Welcome(generation) if self.is_past(generation):
                self._lose()
            case Welcome(generation):
                self._greeted = generation
                self.engine.emit(NativeLink(True, generation))
                self.stage = "up"
                self._backoff_s = BACKOFF_FIRST_S
                self._beat_on(self._life)
                epoch, open_from = self.engine.epoch, self.engine.watermark
                again = [s for s in self._told if s.epoch >= epoch or s.step >= open_from]
                self._told.clear()
                self._suspicions.extendleft(reversed(again))
                self._send_suspicions()
            case Flush(generation, target):
                self._follow(generation)
                report = self.engine.fence(generation, target)
                self.world.note("{} reports {}", self.peer, report)
                self.send(report)
            case Routes():
                self.engine.routed(frame)
            case Pong(generation):
                self._follow(generation)
            case _:
                raise AssertionError(f"{frame} from a coordinator")

    def is_past(self, generation: int) -> bool:
        return generation < max(self._greeted, self._newest_followed())

    def _newest_followed(self) -> int:
        return max(self._followed, self.engine.generation)

    def _follow(self, generation: int) -> None:
        if generation > self._followed:
            self._followed = generation
            self.world.history.followed(self.peer, generation)
            self.engine.emit(NativeFollows(generation))

    def suspect(self, suspicion: Suspect) -> None:
        if len(self._suspicions) >= SUSPICIONS_MAX:
            self._suspicions.popleft()
        self._suspicions.append(suspicion)
        if self.stage == "up":
            self._send_suspicions()

    def _send_suspicions(self) -> None:
        while self._suspicions:
            self._told.append(self._suspicions.popleft())
            self.send(self._told[-1])

    def beat(self) -> None:
        if self.stage == "up":
            self.send(self.status())

    def _beat_on(self, life: int) -> None:
        if life == self._life and self.stage == "up":
            self.send(self.status())
            self.world.at(self.world.now_s + self._heartbeat_s, self.peer, self._beat_on, life)

    def status(self) -> Heartbeat:
        engine = self.engine
        machine = engine.machine
        step, waiting, waits = engine.data.waits()
        return Heartbeat(
            generation=engine.generation,
            epoch=int(machine.epoch),
            watermark=int(machine.watermark),
            next_step=int(machine.next_step),
            progress=engine.data.progress,
            step=step,
            waiting=Waiting.GATE if engine.at_entry else waiting,
            waits=waits,
            down=self.world.links.down(self.peer),
            relayed=self.world.links.relayed(self.peer),
        )
