"""Decides what happens in a demo run and when; pure, so that it is tested without a process.

`start`, `handle` and `on_deadline` return effects for the shell (`run`) to perform in order:
launch a peer, let it connect, kill it, end the run.  The story goes

    founders launched -> all ready -> all connect -> one is killed at step `kill_at`
        -> a newcomer is launched at step `join_at`, connects when ready -> all reach the last step

Invariant: at every moment one deadline is set, and when it passes the run ends with a reason; a run
that ended has no effect left to perform.  A peer that dies unasked is a problem, but the run goes
on as long as one peer does: surviving is what it is about.
"""

from dataclasses import dataclass, field
from enum import Enum

from pccl.demo.events import Admitted, Done, Entered, Event, Exited, Failed, Ready, StepDone

READY_WAIT_S = 150.0  # importing torch from a cold disk, by all peers at once
ENTRY_WAIT_S = 60.0  # connecting, the first view and the first step
STALL_WAIT_S = 90.0  # hundreds of steps; every wait inside a peer ends earlier
DONE_WAIT_S = 30.0  # the peers finish within one step of each other
EXIT_WAIT_S = 15.0  # from a peer's last word to the end of its process
LOG_LINES_MAX = 200  # a run tells some thirty; more are news of trouble, of which the first matter


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is to be.  Steps count committed updates; None leaves the kill or join out."""

    peers: int
    steps: int
    kill_at: int | None
    join_at: int | None

    def __post_init__(self) -> None:
        if not 1 <= self.peers <= 16:
            raise ValueError(f"--peers is {self.peers}; choose 1 to 16")
        if self.steps < 2:
            raise ValueError(f"--steps is {self.steps}; at least 2 are needed")
        if self.kill_at is not None and self.peers < 2:
            raise ValueError("--kill-at needs a second peer to survive it; use --peers 2 or more")
        for name, at in (("--kill-at", self.kill_at), ("--join-at", self.join_at)):
            if at is not None and not 1 <= at < self.steps:
                raise ValueError(f"{name} is {at}; choose 1 to {self.steps - 1}, before the end")
        if self.kill_at is not None and self.join_at is not None and self.join_at < self.kill_at:
            raise ValueError(f"--join-at {self.join_at} comes before --kill-at {self.kill_at}")

    @property
    def shards(self) -> int:
        """One for each peer there will ever be."""
        return self.peers + (self.join_at is not None)

    @property
    def final_world(self) -> int:
        return self.peers - (self.kill_at is not None) + (self.join_at is not None)


class State(Enum):
    """Where a peer stands."""

    STARTING = "starting"
    READY = "ready"
    CONNECTING = "connecting"
    SYNCING = "syncing"
    TRAINING = "training"
    DONE = "done"
    KILLED = "killed"
    FAILED = "failed"


GONE = frozenset({State.KILLED, State.FAILED})


@dataclass(slots=True)
class Peer:
    """What is known of one peer."""

    name: str
    shard: int
    joining: bool
    state: State = State.STARTING
    id: str = ""
    entered_at: int | None = None
    history: list[StepDone] = field(default_factory=list)
    held_out_start: float | None = None
    done: Done | None = None
    exited: bool = False

    @property
    def step(self) -> int:
        return self.history[-1].step if self.history else self.entered_at or 0

    @property
    def sent_bytes(self) -> int:
        return sum(done.wire_bytes for done in self.history)

    @property
    def retries(self) -> int:
        return sum(done.retries for done in self.history)


@dataclass(frozen=True, slots=True)
class Launch:
    peer: str
    shard: int
    joining: bool


@dataclass(frozen=True, slots=True)
class Go:
    peer: str


@dataclass(frozen=True, slots=True)
class Kill:
    peer: str


@dataclass(frozen=True, slots=True)
class End:
    """Nothing more will be decided; the shell ends what still runs."""


Effect = Launch | Go | Kill | End


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the run's log, `at_s` after its start."""

    at_s: float
    text: str
    trouble: bool = False


class Story:
    """The run so far.  Public attributes are for reading; only the methods change them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.peers: dict[str, Peer] = {}
        self.log: list[Line] = []
        self.problems: list[str] = []
        self.over = False
        self.set_up = False  # whether the first step was ever reached
        self.killed_at: int | None = None
        self.recovered_after_s: float | None = None
        self.joined_at: int | None = None
        self.deadline_s = 0.0
        self._deadline_means = ""
        self._killed_s = 0.0
        # Neither the first nor the last rank, so that all peers' places change when it goes.
        self.victim = f"peer {min(1, plan.peers - 1)}"
        self.newcomer = f"peer {plan.peers}"

    @property
    def step(self) -> int:
        """The furthest step that any peer has told of."""
        return max((peer.step for peer in self.peers.values()), default=0)

    @property
    def newest(self) -> StepDone | None:
        """The furthest step's report."""
        last = [peer.history[-1] for peer in self.peers.values() if peer.history]
        return max(last, key=lambda done: done.step, default=None)

    def start(self, now_s: float) -> list[Effect]:
        self._await(now_s + READY_WAIT_S, "the peers to import torch and read their text")
        return [self._launch(shard, joining=False) for shard in range(self.plan.peers)]

    def on_deadline(self, now_s: float) -> list[Effect]:
        """Ends the run if its present deadline has passed."""
        if self.over or now_s < self.deadline_s:
            return []
        return self._end(now_s, f"waited too long for {self._deadline_means}")

    def on_coordinator_exit(self, code: int, now_s: float) -> list[Effect]:
        return [] if self.over else self._end(now_s, f"the coordinator ended with exit code {code}")

    def handle(self, name: str, event: Event, now_s: float) -> list[Effect]:
        """Takes in what peer `name` said, or that it is gone."""
        if self.over:
            return []
        peer = self.peers[name]
        match event:
            case Exited():
                return self._exited(peer, event.code, now_s)
            case StepDone() if peer.state in GONE:
                peer.history.append(event)  # told to commit before it died: the others must be too
            case _ if peer.state in GONE:
                return []
            case Ready():
                return self._ready(peer, now_s)
            case Admitted():
                peer.state = State.SYNCING
                peer.id = event.id
                self._say(now_s, f"{name} was admitted as {event.id}")
            case Entered():
                self._entered(peer, event, now_s)
            case StepDone():
                return self._step_done(peer, event, now_s)
            case Done():
                peer.state = State.DONE
                peer.done = event
                self._await(now_s + DONE_WAIT_S, "the other peers to finish")
                self._say(now_s, f"{name} finished step {event.step}: {event.digest[:12]}")
            case Failed():
                return self._lost(peer, f"{name} failed: {event.reason}", now_s)
        return []

    def _launch(self, shard: int, *, joining: bool) -> Launch:
        name = f"peer {shard}"
        self.peers[name] = Peer(name=name, shard=shard, joining=joining)
        return Launch(peer=name, shard=shard, joining=joining)

    def _ready(self, peer: Peer, now_s: float) -> list[Effect]:
        peer.state = State.READY
        if peer.joining:
            peer.state = State.CONNECTING
            self._say(now_s, f"{peer.name} is ready and connects")
            return [Go(peer.name)]
        founders = list(self.peers.values())
        if any(founder.state is not State.READY for founder in founders):
            return []
        # All at once, so that they found the run together instead of joining it one by one.
        for founder in founders:
            founder.state = State.CONNECTING
        self._await(now_s + ENTRY_WAIT_S, "the peers to meet and take their first step")
        self._say(now_s, f"{len(founders)} peers are ready and connect")
        return [Go(founder.name) for founder in founders]

    def _entered(self, peer: Peer, event: Entered, now_s: float) -> None:
        peer.state = State.TRAINING
        peer.entered_at = event.step
        peer.held_out_start = event.held_out_loss
        if peer.joining:
            self.joined_at = event.step
            text = f"{peer.name} joined after step {event.step} and holds the run's state"
            self._say(now_s, text)

    def _step_done(self, peer: Peer, event: StepDone, now_s: float) -> list[Effect]:
        self.set_up = True
        before = self.newest
        peer.state = State.TRAINING
        peer.history.append(event)
        if before is None or event.epoch > before.epoch:
            text = f"epoch {event.epoch}: {event.world_size} members from step {event.step} on"
            self._say(now_s, text)
        if event.retries:
            text = f"{peer.name} ran step {event.step} {event.retries + 1} times, then it committed"
            self._say(now_s, text)
        if not any(other.done for other in self.peers.values()):
            self._await(now_s + STALL_WAIT_S, f"a step after step {self.step}")
        if self.killed_at is not None and self.recovered_after_s is None:
            victim = self.peers[self.victim]
            if peer is not victim and victim.id not in event.contributors:
                self.recovered_after_s = now_s - self._killed_s
                text = f"first step without {self.victim} after {self.recovered_after_s:.2f} s"
                self._say(now_s, text)
        return self._what_is_due(now_s)

    def _what_is_due(self, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        kill_at, join_at = self.plan.kill_at, self.plan.join_at
        if kill_at is not None and self.killed_at is None and self.step >= kill_at:
            victim = self.peers[self.victim]
            if victim.state is State.TRAINING:
                victim.state = State.KILLED
                self.killed_at = self.step
                self._killed_s = now_s
                self._say(
                    now_s, f"{self.victim} is killed with SIGKILL as the run is at step {self.step}"
                )
                effects.append(Kill(self.victim))
        if join_at is not None and self.newcomer not in self.peers and self.step >= join_at:
            self._say(now_s, f"{self.newcomer} is started after step {self.step}")
            effects.append(self._launch(self.plan.peers, joining=True))
        return effects

    def _exited(self, peer: Peer, code: int, now_s: float) -> list[Effect]:
        peer.exited = True
        if peer.state is State.DONE and code != 0:
            self._problem(now_s, f"{peer.name} had finished, but ended with {_exit(code)}")
        elif peer.state not in GONE and peer.state is not State.DONE:
            effects = self._lost(peer, f"{peer.name} died unasked with {_exit(code)}", now_s)
            if effects:
                return effects
        if all(other.exited for other in self.peers.values()):
            return self._end(now_s)
        if all(other.done or other.state in GONE for other in self.peers.values()):
            self._await(now_s + EXIT_WAIT_S, "the peers' processes to end")
        return []

    def _lost(self, peer: Peer, problem: str, now_s: float) -> list[Effect]:
        peer.state = State.FAILED
        self._problem(now_s, problem)
        return [] if self.set_up else self._end(now_s)

    def _end(self, now_s: float, problem: str = "") -> list[Effect]:
        if problem:
            self._problem(now_s, problem)
        self.over = True
        return [End()]

    def _await(self, deadline_s: float, meaning: str) -> None:
        self.deadline_s = deadline_s
        self._deadline_means = meaning

    def _problem(self, now_s: float, text: str) -> None:
        self.problems.append(text)
        self._say(now_s, text, trouble=True)

    def _say(self, now_s: float, text: str, *, trouble: bool = False) -> None:
        if len(self.log) < LOG_LINES_MAX:
            self.log.append(Line(at_s=now_s, text=text, trouble=trouble))


def _exit(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
