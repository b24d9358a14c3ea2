"""One kind of fault at a time, many times, against a bar: the figures that a mixed run cannot give.

Every scenario prints its bars and fails if one is missed or if the histories disagree.  A gap is
the time from the blow to the first commit, on each survivor, in which the victim has no part.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.churn.compiled import compiled
from tests.churn.hosts import DIE_TOGETHER
from tests.churn.records import Fault, lives_of
from tests.churn.rules import LinkFault, LinkQuality, both_ways
from tests.churn.run import CALM_S, Plan, Result, begin, end, judge, wait
from tests.churn.world import Peer, Settings, Trouble, World
from tests.faults.report import quantile

PEERS = 4
PHASE_S = 0.3  # a random moment within is a random moment of a step
RECOVER_S = 60.0
SETTLE_S = 2.0
STRAGGLER_S = 2.0
FOUND_S = 10.0  # a stall's patience, and some
OVERLOAD = 2  # busy processes per core
DEAF = Path(__file__).with_name("deaf.cpp")


@dataclass(frozen=True, slots=True)
class Bar:
    """What was measured, and what it may be at most; None: for information."""

    name: str
    value: float
    limit: float | None = None

    @property
    def passed(self) -> bool:
        return self.limit is None or self.value <= self.limit


@dataclass(slots=True)
class Stage:
    """A whole world and what a scenario may do with it."""

    world: World
    dice: random.Random
    samples: int
    minutes: float
    tell: Callable[[str], None]
    violations: list[str] = field(default_factory=list)

    def run_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.violations += self.world.poll()
            time.sleep(0.005)

    def wait(self, condition: Callable[[], bool], timeout_s: float, what: str) -> float:
        return wait(self.world, condition, timeout_s, what)

    def whole(self, size: int = PEERS) -> None:
        """Waits until `size` peers commit together; replaces those that are gone."""
        world = self.world
        while len(world.peers) + len(world.spares) < size:
            used = {peer.host.name for peer in (*world.peers, *world.spares)}
            world.prepare(next(h for h in world.places.hosts if h.name not in used))
        for spare in list(world.spares):
            self._ready(spare)
            if len(world.peers) < size:
                world.start(spare)

        def together() -> bool:
            lives = [peer.history.life for peer in world.peers]
            names = {life.peer for life in lives if life is not None}
            return len(names) == size and all(
                life is not None and life.commits and set(life.commits[-1].contributors) == names
                for life in lives
            )

        self.wait(together, RECOVER_S, f"{size} peers commit together")

    def _ready(self, spare: Peer) -> None:
        self.wait(lambda: spare.history.ready, CALM_S, "a spare is ready")

    def gone(self, victim: Peer) -> None:
        """Waits until a peer that was left out has been told, and its process has ended."""
        world = self.world
        self.wait(lambda: victim not in world.peers, RECOVER_S, f"{victim.name} is told")

    def gaps(self, victim: Peer, since: float) -> list[float]:
        """Waits until all others go on without a victim; returns each one's gap."""
        world = self.world
        life = victim.history.lives[-1]
        survivors = [peer for peer in world.peers if peer is not victim]

        def first(peer: Peer) -> float | None:
            mine = peer.history.life
            for commit in mine.commits if mine is not None else ():
                if commit.at > since and life.peer not in commit.contributors:
                    return commit.at
            return None

        def gone_on() -> bool:
            return all(first(peer) is not None for peer in survivors)

        self.wait(gone_on, RECOVER_S, f"the others go on without {victim.name}")
        return [at - since for peer in survivors if (at := first(peer)) is not None]

    def retries(self, since: float) -> int:
        """Aborted attempts of steps that were committed since."""
        lives = lives_of(peer.history for peer in self.world.all_peers)
        steps = {c.step: c.retries for life in lives for c in life.commits if c.at > since}
        return sum(steps.values())

    def evictions(self, error: str = "Evicted") -> int:
        lives = lives_of(peer.history for peer in self.world.all_peers)
        return sum(life.end == error for life in lives)

    def longest_gap(self, since: float, until: float) -> float:
        """The longest time without a commit by anybody within a stretch."""
        lives = lives_of(peer.history for peer in self.world.all_peers)
        times = sorted(c.at for life in lives for c in life.commits if since < c.at < until)
        return max(two - one for one, two in itertools.pairwise([since, *times, until]))


def loss(stage: Stage) -> list[Bar]:
    """1 % loss, 300 ms round trip, all cores overloaded: nobody is evicted."""
    began = time.monotonic()
    cores = os.cpu_count() or 1
    with busy(OVERLOAD * cores, 60 * stage.minutes + 60):
        for _ in range(max(1, round(4 * stage.minutes))):
            stage.run_for(15.0)
            stage.tell(f"{stage.evictions()} evictions, {stage.retries(began)} retries")
    return [
        Bar("evictions", stage.evictions(), 0),
        Bar("aborted attempts", stage.retries(began)),
        Bar("minutes", (time.monotonic() - began) / 60),
    ]


def blackhole(stage: Stage) -> list[Bar]:
    """A peer is stopped, or its host unplugged without a word: the others soon go on."""
    stops, holes = list[float](), list[float]()
    world = stage.world
    for i in range(stage.samples):
        stage.run_for(SETTLE_S + stage.dice.uniform(0, PHASE_S))
        victim = stage.dice.choice(world.peers)
        if i % 2:
            fault = world.open_fault("stop", processes=(victim.name,))
            victim.child.signal(signal.SIGSTOP)
            victim.stopped = True
            gaps = stops
        else:
            fault = unplug(world, victim.host.name)
            gaps = holes
        new = stage.gaps(victim, fault.at)
        gaps += new
        stage.tell(f"{fault.kind}: {max(new):.2f} s")
        victim.child.signal(signal.SIGCONT)
        victim.stopped = False
        world.close_fault(fault)
        stage.gone(victim)
        stage.whole()
    return [*quantiles("SIGSTOP", stops, 4.0), *quantiles("black hole", holes, 4.0)]


def coordinator(stage: Stage) -> list[Bar]:
    """The coordinator is killed and restarted, and stopped: nobody's step is aborted."""
    world = stage.world
    began = time.monotonic()
    late = list[float]()
    for _ in range(stage.samples):
        stage.run_for(SETTLE_S + stage.dice.uniform(0, PHASE_S))
        fault = world.kill_coordinator()
        stage.run_for(stage.dice.uniform(0.0, 2.0))
        world.start_coordinator()
        stage.wait(world.coordinator_listens, RECOVER_S, "the coordinator listens again")
        world.close_fault(fault)
        listens_at = time.monotonic()
        stage.run_for(3.0)
        gap_s = stage.longest_gap(fault.at, listens_at + 3.0)
        late.append(gap_s - (listens_at - fault.at))
        stage.tell(f"restart {listens_at - fault.at:.2f} s, longest gap {gap_s:.2f} s")
    fault = world.open_fault("coordinator-stop", text="30 s")
    assert world.coordinator is not None
    world.coordinator.signal(signal.SIGSTOP)
    stage.run_for(30.0)
    world.coordinator.signal(signal.SIGCONT)
    world.close_fault(fault)
    stage.run_for(5.0)
    stopped_gap_s = stage.longest_gap(fault.at, time.monotonic())
    return [
        Bar("aborted attempts", stage.retries(began), 0),
        Bar("evictions, one stop of 30 s included", stage.evictions(), 0),
        Bar("gap minus restart, max of " + str(stage.samples), max(late), 1.0),
        Bar("gap while stopped for 30 s", stopped_gap_s, 1.0),
    ]


def link(stage: Stage) -> list[Bar]:
    """One bad link between two healthy peers, either way or both: nobody is evicted."""
    world = stage.world
    began = time.monotonic()
    resumed = list[float]()
    for i in range(stage.samples):
        stage.run_for(SETTLE_S + stage.dice.uniform(0, PHASE_S))
        one, two = stage.dice.sample([peer.host.name for peer in world.peers], 2)
        cuts: Sequence[LinkFault] = both_ways("cut", one, two)
        shown = "both ways"
        if i % 3:
            cuts, shown = [LinkFault("cut", one, two)], "one way"
        fault = world.open_fault("cut", hosts=(one, two), links=cuts, text=shown)
        stage.run_for(15.0)
        gap_s = stage.longest_gap(fault.at, time.monotonic())
        resumed.append(gap_s)
        stage.tell(f"{shown}: longest gap {gap_s:.2f} s, {stage.evictions()} evictions so far")
        world.close_fault(fault)
        stage.whole()
    return [
        Bar("evictions", stage.evictions(), 0),
        Bar("aborted attempts", stage.retries(began)),
        *quantiles("longest gap", resumed, None),
    ]


def zero_window(stage: Stage) -> list[Bar]:
    """A member answers everybody and beats on, but never reads its lanes again."""
    world = stage.world
    shim = compiled(DEAF, "deaf.so", ("-shared", "-fPIC"))
    found = list[float]()
    for i in range(stage.samples):
        trigger = world.folder / f"deaf{i}"
        victim_host = stage.dice.choice(world.peers).host
        leaver = next(peer for peer in world.peers if peer.host is victim_host)
        world.kill([leaver])
        environment = (f"LD_PRELOAD={shim}", f"DEAF_WHEN={trigger}")
        victim = world.prepare(victim_host, environment=environment)
        stage.whole()
        stage.run_for(SETTLE_S + stage.dice.uniform(0, PHASE_S))
        fault = world.open_fault("block", processes=(victim.name,), text="deaf")
        trigger.touch()
        new = stage.gaps(victim, fault.at)
        found += new
        stage.tell(f"{max(new):.2f} s")
        trigger.unlink()
        world.close_fault(fault)
        stage.gone(victim)
        stage.whole()
    return quantiles("found and left out", found, FOUND_S)


def stuck(stage: Stage) -> list[Bar]:
    """A program hangs between two steps while its library answers: the others leave it out for as
    long, and it comes back as the same incarnation."""
    world = stage.world
    found = list[float]()
    for _ in range(stage.samples):
        stage.run_for(SETTLE_S + stage.dice.uniform(0, PHASE_S))
        victim = stage.dice.choice(world.peers)
        fault = world.open_fault("block", processes=(victim.name,))
        victim.child.order("stuck 10")
        new = stage.gaps(victim, fault.at)
        found += new
        stage.tell(f"{max(new):.2f} s")
        stage.run_for(10.0)
        world.close_fault(fault)
        stage.whole()
    return [
        Bar("evictions", stage.evictions(), 0),
        Bar("processes started", len(world.all_peers), PEERS),
        *quantiles("others go on", found, STRAGGLER_S + 1.0),
    ]


def quantiles(name: str, values: list[float], limit: float | None) -> list[Bar]:
    if not values:
        return []
    half = Bar(f"{name}: seconds, p50 of {len(values)}", quantile(values, 0.5))
    return [half, Bar(f"{name}: seconds, max", max(values), limit)]


def unplug(world: World, name: str) -> Fault:
    names = [host.name for host in (world.places.coordinator, *world.places.hosts)]
    links = [link for other in names if other != name for link in both_ways("cut", name, other)]
    return world.open_fault("unplug", hosts=(name,), links=links)


@contextmanager
def busy(count: int, seconds: float) -> Iterator[None]:
    """Keeps so many processes busy for as long as the block lasts, at most `seconds`."""
    command = [*DIE_TOGETHER, "timeout", f"{seconds:.0f}", "sh", "-c", "while :; do :; done"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(10.0)


Scenario = Callable[[Stage], list[Bar]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A scenario and the world that it needs."""

    play: Scenario
    samples: int = 10
    fabric: str = "veth"
    quality: LinkQuality = field(default_factory=LinkQuality)
    settings: Settings = field(default_factory=Settings)


FAR = LinkQuality(delay_ms=150.0, loss=0.01)
SCENES = {
    "loss": Scene(
        play=loss, fabric="emulator", quality=FAR, settings=Settings(profile="wan", pace_s=0.05)
    ),
    "blackhole": Scene(play=blackhole, samples=20),
    "coordinator": Scene(play=coordinator),
    "link": Scene(play=link, samples=6),
    "stuck": Scene(play=stuck, samples=5, settings=Settings(connect=(("straggler", STRAGGLER_S),))),
    "zero-window": Scene(play=zero_window, samples=5, settings=Settings(count=1 << 20)),
}


def play(
    scene: Scene, world: World, *, seed: int, samples: int, minutes: float,
    tell: Callable[[str], None],
) -> tuple[list[Bar], Result]:  # fmt: skip
    """Plays a scene in a fresh world; returns its bars, and what the histories say."""
    plan = Plan(minutes=minutes, least=PEERS, most=PEERS, seed=seed, gap_bar_s=1e9,
                settings=scene.settings)  # fmt: skip
    result = Result(seed)
    stage = Stage(world, random.Random(seed), samples, minutes, tell, result.violations)
    bars: list[Bar] = []
    try:
        begin(world, plan)
        stage.whole()
        bars = scene.play(stage)
        end(world)
    except Trouble as trouble:
        result.violations.append(str(trouble))
    except KeyboardInterrupt:
        result.violations.append("interrupted")
    finally:
        ended_at = time.monotonic()
        world.discard_all()
    judge(world, plan, result, ended_at)
    return bars, result
