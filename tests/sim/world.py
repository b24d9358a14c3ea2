"""A world of processes: virtual time, what travels between them, and what is kept of a run.

Everything random comes from one generator, so a script is a run.  The world knows processes, not
what they do; the coordinator is in coordinator_process.py, peers are in peer_process.py.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from pccl.base.config import TimeProfile
from pccl.membership.messages import coordinator_codec, peer_codec
from pccl.transport import native_frames
from tests.sim.disk import Disk
from tests.sim.history import History
from tests.sim.script import Script

if TYPE_CHECKING:
    from tests.sim.coordinator_process import CoordinatorProcess
    from tests.sim.links import Links
    from tests.sim.peer_process import PeerProcess

DIAL_TIMEOUT_S: Final = 3.0
DIAL_AGAIN_S: Final = 1.0  # a kernel that gets no answer asks again
EVENTS_MAX: Final = 200_000  # of one run; more is a busy loop
# Peers dial a lost coordinator again after 3 s at the latest: no patience with them is shorter.
PROFILE: Final = TimeProfile(
    name="sim",
    heartbeat_s=0.25,
    lease_s=1.5,
    flush_timeout_s=1.0,
    suspect_grace_s=1.0,
    links_timeout_s=2.0,
    initial_settle_s=0.3,
    reattach_window_s=3.5,
    coordinator_grace_s=60.0,
    stall_timeout_s=4.0,
    route_timeout_s=1.0,
    enter_timeout_s=2.0,
)
HASTY: Final = TimeProfile(
    name="hasty",
    heartbeat_s=0.15,
    lease_s=0.8,
    flush_timeout_s=0.5,
    suspect_grace_s=0.4,
    links_timeout_s=1.0,
    initial_settle_s=0.2,
    reattach_window_s=3.5,
    coordinator_grace_s=60.0,
    stall_timeout_s=3.5,
    route_timeout_s=0.6,
    enter_timeout_s=1.0,
)


class Process:
    """Something that may be stopped, and ends for good."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.stopped_until_s = 0.0

    def __repr__(self) -> str:
        return self.name


class Wire:
    """One control connection.  Each direction keeps its order and may lose its end."""

    __slots__ = (
        "coordinator",
        "down_until_s",
        "kind",
        "last_down_s",
        "last_up_s",
        "number",
        "on_closed",
        "on_message",
        "peer",
        "up_until_s",
    )

    def __init__(self, peer: PeerProcess, coordinator: CoordinatorProcess, kind: str) -> None:
        self.peer = peer
        self.coordinator = coordinator
        self.kind = kind  # agent or native
        self.number = 0
        self.last_up_s = self.last_down_s = 0.0
        self.up_until_s = self.down_until_s = math.inf  # what arrives later is lost
        self.on_message: Callable[[Any], None] = _nothing
        self.on_closed: Callable[[], None] = _nothing


def _nothing(*_: object) -> None:
    return None


class World:
    def __init__(self, script: Script, *, traced: bool = False) -> None:
        self.script = script
        self.rng = random.Random(f"{script.seed} played")
        self.profile = HASTY if script.hasty else PROFILE
        self.now_s = 0.0
        self.events = 0
        self.trace: list[tuple[float, str, tuple[Any, ...]]] | None = [] if traced else None
        self.history = History()
        self.disk = Disk()
        self.peers: list[PeerProcess] = []
        self.coordinators: list[CoordinatorProcess] = []
        self.listening: CoordinatorProcess | None = None
        self.host_is_gone = False  # the coordinator's: nothing there answers a dial
        self.wires: list[Wire] = []
        self.links: Links  # between peers; set, like the next two, by who makes the world
        self.make_coordinator: Callable[..., CoordinatorProcess]
        self.make_peer: Callable[[World], PeerProcess]
        self.by_incarnation: dict[int, PeerProcess] = {}
        self.played: Counter[str] = Counter()
        self.resets: defaultdict[tuple[int, str], list[float]] = defaultdict(list)  # when
        self.told_count = 0  # processes that were told to go
        self.innocent_count = 0  # of them, those that no fault had touched
        self.nobody_is_safe = False  # a fault touched everybody
        self.quiet = False  # no more faults
        self.faults_until_s = 0.0  # one of them takes so long
        self.drains_until_s = 0.0  # so long may a member that drains be the only one
        self.delay_factor = 1.0
        self._heap: list[tuple[float, int, Process | None, Callable[..., object], Any]] = []
        self._sequence = 0
        self._blocks: dict[tuple[Any, ...], float] = {}
        self._random = self.rng.random

    # ------------------------------------------------------------ time

    def at(self, time_s: float, process: Process | None, action: Any, *args: Any) -> None:
        """Does something then; of a process: later if it is stopped, never if it has ended."""
        self._sequence += 1
        time_s = max(time_s, self.now_s)
        heapq.heappush(self._heap, (time_s, self._sequence, process, action, args))

    def run_until(self, end_s: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= end_s:
            now_s, _, process, action, args = heapq.heappop(heap)
            self.now_s = now_s
            if process is not None:
                if not process.alive:
                    continue
                if now_s < process.stopped_until_s:
                    self.at(process.stopped_until_s, process, action, *args)
                    continue
            self.events += 1
            action(*args)
        assert self.events < EVENTS_MAX, "so much happens that somebody must run in circles"
        self.now_s = end_s

    def hop_s(self) -> float:
        return self.script.delay_s * self.delay_factor * (0.5 + self._random())

    def note(self, text: str, *args: Any) -> None:
        """Keeps what happened, if anybody wants to know; it is formatted when it is read."""
        if self.trace is not None:
            self.trace.append((self.now_s, text, args))

    def told(self) -> list[str]:
        return [f"{at_s:8.4f} {text.format(*args)}" for at_s, text, args in self.trace or ()]

    def dispose(self) -> None:
        """The run is over; nothing of it happens any more."""
        self._heap.clear()

    # ------------------------------------------------------------ cuts

    def block(self, key: tuple[Any, ...], duration_s: float) -> None:
        """Nothing passes for a while; what is sent meanwhile is sent again afterwards (TCP)."""
        self._blocks[key] = max(self._blocks.get(key, 0.0), self.now_s + duration_s)

    def blocked_until_s(self, key: tuple[Any, ...]) -> float:
        return self._blocks.get(key, 0.0)

    def heal(self) -> None:
        self._blocks.clear()
        self.delay_factor = 1.0

    # ------------------------------------------------------------ connections to the coordinator

    def dial(self, peer: PeerProcess, kind: str, answer: Callable[[Wire | None], None]) -> None:
        """Connects to whoever listens; answers with the connection or None."""
        arrives_s = max(self.now_s, self.blocked_until_s((kind, peer.index, "up"))) + self.hop_s()
        if arrives_s > self.now_s + DIAL_TIMEOUT_S:
            self.at(self.now_s + DIAL_TIMEOUT_S, peer, answer, None)
        else:
            late_s = self.now_s + DIAL_TIMEOUT_S
            self.at(arrives_s, None, self._dialled, peer, kind, answer, late_s)

    def _dialled(
        self, peer: PeerProcess, kind: str, answer: Callable[[Wire | None], None], late_s: float
    ) -> None:
        coordinator = self.listening
        wire = None
        if coordinator is None and self.host_is_gone:
            again_s = self.now_s + DIAL_AGAIN_S
            if again_s < late_s:
                self.at(again_s, None, self._dialled, peer, kind, answer, late_s)
            else:
                self.at(late_s, peer, answer, None)
            return
        # Who knows nothing of the run is told by a copy what a coordinator tells newcomers; what
        # is said between these two concerns nobody else.
        lonely = coordinator is not None and coordinator.is_copy and not peer.incarnation
        if coordinator is not None and (coordinator.machine.outdated or not lonely):
            wire = Wire(peer, coordinator, kind)
            self.wires.append(wire)
            self.at(self.now_s, coordinator, coordinator.accept, wire)
        back_s = max(self.now_s, self.blocked_until_s((kind, peer.index, "down"))) + self.hop_s()
        self.at(back_s, peer, self._connected, wire, answer)
        if wire is not None:
            wire.last_down_s = back_s

    def _connected(self, wire: Wire | None, answer: Callable[[Wire | None], None]) -> None:
        if wire is not None and self.now_s > wire.down_until_s:
            wire = None  # the coordinator is gone already
        answer(wire)

    def send_up(self, wire: Wire, message: Any) -> None:
        if self.script.real_bytes:
            codec: Any = peer_codec if wire.kind == "agent" else native_frames
            message = codec.decode(codec.encode(message))
        key = (wire.kind, wire.peer.index, "up")
        at_s = max(self.now_s, self.blocked_until_s(key)) + self.hop_s()
        wire.last_up_s = at_s = max(wire.last_up_s, at_s)
        self.at(at_s, wire.coordinator, self._arrive_up, wire, message)

    def _arrive_up(self, wire: Wire, message: Any) -> None:
        if self.now_s <= wire.up_until_s:
            wire.coordinator.receive(wire, message)

    def send_down(self, wire: Wire, message: Any) -> None:
        if self.script.real_bytes:
            codec: Any = coordinator_codec if wire.kind == "agent" else native_frames
            message = codec.decode(codec.encode(message))
        key = (wire.kind, wire.peer.index, "down")
        at_s = max(self.now_s, self.blocked_until_s(key)) + self.hop_s()
        wire.last_down_s = at_s = max(wire.last_down_s, at_s)
        self.at(at_s, wire.peer, self._arrive_down, wire, message)

    def _arrive_down(self, wire: Wire, message: Any) -> None:
        if self.now_s <= wire.down_until_s:
            wire.on_message(message)

    def close_down(self, wire: Wire) -> None:
        """The coordinator's end closes after what it has sent."""
        self._finish_down(wire, max(wire.last_down_s, self.now_s + self.hop_s()))
        wire.up_until_s = min(wire.up_until_s, self.now_s)
        self.at(self.now_s, wire.coordinator, wire.coordinator.lost, wire)

    def close_up(self, wire: Wire) -> None:
        """The peer's end closes after what it has sent."""
        self._finish_up(wire, max(wire.last_up_s, self.now_s + self.hop_s()))
        wire.down_until_s = min(wire.down_until_s, self.now_s)

    def reset(self, wire: Wire, fraction: float) -> None:
        """Both ends lose the connection; of what is under way a prefix arrives."""
        up_s = self.now_s + fraction * max(0.0, wire.last_up_s - self.now_s)
        down_s = self.now_s + fraction * max(0.0, wire.last_down_s - self.now_s)
        self._finish_up(wire, up_s)
        self._finish_down(wire, down_s)

    def _finish_up(self, wire: Wire, last_s: float) -> None:
        if last_s < wire.up_until_s:
            wire.up_until_s = last_s
            known_s = max(last_s, self.blocked_until_s((wire.kind, wire.peer.index, "up")))
            self.at(known_s + 1e-6, wire.coordinator, wire.coordinator.lost, wire)

    def _finish_down(self, wire: Wire, last_s: float) -> None:
        if last_s < wire.down_until_s:
            wire.down_until_s = last_s
            known_s = max(last_s, self.blocked_until_s((wire.kind, wire.peer.index, "down")))
            self.at(known_s + 1e-6, wire.peer, self._end_down, wire)

    def _end_down(self, wire: Wire) -> None:
        wire.on_closed()  # whose it is now: the end may come with the answer to the dial

    def forget_wire(self, wire: Wire) -> None:
        if wire in self.wires:
            self.wires.remove(wire)

    # ------------------------------------------------------------ who there is

    def living(self) -> list[PeerProcess]:
        return [p for p in self.peers if p.alive]

    def choose(self, number: int) -> PeerProcess | None:
        living = self.living()
        return living[number % len(living)] if living else None
