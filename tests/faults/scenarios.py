"""What is done to the world, and the figures that come of it.

Every scenario begins and ends with a whole world; it returns seconds, one per peer and event.
A gap ends with the first commit that the victims have no part in: a commit that they could still
take part in shows nothing about recovery.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.faults.world import Peer, Trouble, World, peer_names

RECOVER_S = 30.0
JOIN_S = 30.0
EVICTED_S = 20.0
PHASE_S = 0.15  # a few steps: a random moment within is a random moment of a step
STORM = 4  # deaths and replacements in one storm, at most
WATCH_S = 1.0  # how long a lone survivor is watched not to go on


@dataclass(slots=True)
class Figures:
    """Seconds by scenario, and sentences about what must not have happened."""

    transport: str = "tcp"
    kill_gaps_s: list[float] = field(default_factory=list)
    kill_next_s: list[float] = field(default_factory=list)  # to the next commit of any kind
    stop_gaps_s: list[float] = field(default_factory=list)
    evicted_s: list[float] = field(default_factory=list)  # from SIGCONT to the typed error
    join_s: list[float] = field(default_factory=list)
    leave_gaps_s: list[float] = field(default_factory=list)
    mass_s: list[float] = field(default_factory=list)  # from the newcomers' start to a commit
    storm_s: list[float] = field(default_factory=list)  # from the first kill to a whole world
    retries_by_joins: int = 0
    violations: list[str] = field(default_factory=list)


def wait_for_gaps(
    world: World, survivors: list[Peer], victims: list[str], since: float
) -> Iterator[tuple[float, float]]:
    """Waits until all survivors went on; yields each one's gap, and that to any commit."""

    def gone_on() -> bool:
        return all(peer.history.first_commit(since, without=victims) for peer in survivors)

    world.wait_until(f"the survivors of {victims[0][:8]} go on", gone_on, RECOVER_S)
    for peer in survivors:
        recovered = peer.history.first_commit(since, without=victims)
        following = peer.history.first_commit(since)
        assert recovered is not None and following is not None
        yield recovered.at - since, following.at - since


def kill(world: World, dice: random.Random, figures: Figures) -> None:
    """SIGKILL at a random moment; the replacement comes at the same time, or afterwards."""
    world.prepare(1 - len(world.spares))
    world.wait_until("a spare is ready", lambda: world.spares[0].history.ready, RECOVER_S)
    time.sleep(dice.uniform(0, PHASE_S))
    victim = dice.choice(world.peers)
    survivors = [peer for peer in world.peers if peer is not victim]
    together = dice.random() < 0.5
    at = victim.send(signal.SIGKILL)
    if together:
        world.start()
    for gap_s, next_s in wait_for_gaps(world, survivors, peer_names([victim]), at):
        figures.kill_gaps_s.append(gap_s)
        figures.kill_next_s.append(next_s)
    world.remove(victim)
    if not together:
        world.start()
    world.wait_whole()


def stop(world: World, dice: random.Random, figures: Figures) -> None:
    """SIGSTOP; the others go on; resumed, the process is told that it was evicted."""
    world.prepare(1 - len(world.spares))
    world.wait_until("a spare is ready", lambda: world.spares[0].history.ready, RECOVER_S)
    time.sleep(dice.uniform(0, PHASE_S))
    victim = dice.choice(world.peers)
    survivors = [peer for peer in world.peers if peer is not victim]
    at = victim.send(signal.SIGSTOP)
    gaps = wait_for_gaps(world, survivors, peer_names([victim]), at)
    figures.stop_gaps_s += [gap_s for gap_s, _ in gaps]
    victim.doomed = True
    resumed_at = victim.send(signal.SIGCONT)
    world.wait_until(
        f"the evicted {victim.name} ends", lambda: victim.history.end is not None, EVICTED_S
    )
    if victim.history.end != "Evicted":
        figures.violations.append(
            f"a stopped process ended with {victim.history.end}: {victim.history.end_text}"
        )
    figures.evicted_s.append(victim.history.end_at - resumed_at)
    world.remove(victim)
    world.start()
    world.wait_whole()


def join(world: World, dice: random.Random, figures: Figures) -> None:
    """A fifth peer comes in and leaves again; nobody's step is aborted because it came."""
    world.prepare(1 - len(world.spares))
    world.wait_until("a spare is ready", lambda: world.spares[0].history.ready, RECOVER_S)
    time.sleep(dice.uniform(0, PHASE_S))
    members = list(world.peers)
    (joiner,) = world.start()
    world.wait_until("the joiner is in", lambda: bool(joiner.history.commits), JOIN_S)
    world.wait_whole()
    history = joiner.history
    assert history.connecting_at is not None
    figures.join_s.append(history.commits[0].at - history.connecting_at)
    for peer in (*members, joiner):
        for commit in peer.history.commits:
            if commit.at > history.connecting_at and commit.retries:
                figures.retries_by_joins += 1
                figures.violations.append(
                    f"step {commit.step} at {peer.history.peer[:8]} was retried "
                    f"{commit.retries} times while {history.peer[:8]} joined"
                )
    leave(world, joiner, figures)


def leave(world: World, leaver: Peer, figures: Figures) -> None:
    """A peer closes between two steps; the others go on."""
    leaver.doomed = True
    leaver.send(signal.SIGTERM)
    world.wait_until(f"{leaver.name} ends", lambda: leaver.process.poll() is not None, RECOVER_S)
    if leaver.process.returncode != 0:
        raise Trouble(f"{leaver.name} left with exit code {leaver.process.returncode}")
    last = leaver.history.commits[-1].at
    survivors = [peer for peer in world.peers if peer is not leaver]
    gaps = wait_for_gaps(world, survivors, peer_names([leaver]), last)
    figures.leave_gaps_s += [gap_s for gap_s, _ in gaps]
    world.remove(leaver)
    world.wait_whole()


def mass(world: World, dice: random.Random, figures: Figures) -> None:
    """All but one die at once; the one waits for `min_world`, and all go on when others come."""
    lost = len(world.peers) - 1
    world.prepare(lost - len(world.spares))
    world.wait_until(
        "the spares are ready", lambda: all(s.history.ready for s in world.spares), RECOVER_S
    )
    time.sleep(dice.uniform(0, PHASE_S))
    survivor = dice.choice(world.peers)
    victims = [peer for peer in world.peers if peer is not survivor]
    for victim in victims:
        victim.send(signal.SIGKILL)
    time.sleep(WATCH_S)
    for victim in victims:
        world.remove(victim)
    survivor.history.poll()
    before = len(survivor.history.commits)
    time.sleep(WATCH_S / 2)
    survivor.history.poll()
    if world.min_world > 1 and len(survivor.history.commits) != before:
        figures.violations.append("a lone survivor went on without min_world members")
    started_at = time.monotonic()
    world.start(lost)
    world.wait_whole(RECOVER_S)
    first = survivor.history.first_commit(started_at)
    assert first is not None
    figures.mass_s.append(first.at - started_at)


def storm(world: World, dice: random.Random, figures: Figures) -> None:
    """Up to two members and any number of joiners die at moments that hit one another's recovery:
    in a flush, in a plan, between its rounds, at a first step."""
    world.prepare(STORM - len(world.spares))
    world.wait_until(
        "the spares are ready", lambda: all(s.history.ready for s in world.spares), RECOVER_S
    )
    began = time.monotonic()
    whole = len(world.peers)
    members, joiners = list(world.peers), list[Peer]()
    for _ in range(dice.randint(2, STORM)):
        newest = world.start()[0]
        joiners.append(newest)
        time.sleep(dice.choice((0, dice.uniform(0, PHASE_S))))
        may_die = [p for p in members if len(members) > max(1, whole - 2)] + joiners
        victim = dice.choice(may_die)
        (members if victim in members else joiners).remove(victim)
        victim.send(signal.SIGKILL)
        time.sleep(dice.choice((0, dice.uniform(0, PHASE_S))))
        world.remove(victim)
    missing = whole - len(world.peers)
    world.prepare(missing - len(world.spares))
    world.start(missing)
    world.wait_whole(RECOVER_S)
    figures.storm_s.append(time.monotonic() - began)
