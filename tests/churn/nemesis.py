"""Does things to a world: one event per 0.1 to 2 s, drawn from a seeded schedule.

`choose` is pure: from what the world looks like it draws what to do next.  The `Nemesis` does it,
and undoes it when its time is over.  Invariant: what is done leaves `min_world` healthy members,
unless it is over in a moment (`BRIEF_S`) or is a burst, whose victims are replaced at once.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.churn.records import Fault
from tests.churn.rules import LinkFault, both_ways
from tests.churn.timeline import COORDINATOR_HOST
from tests.churn.world import START_S, Peer, Trouble, World

INTERVAL_S = (0.1, 2.0)  # between two events; its logarithm is drawn
BRIEF_S = 0.5
RARELY = 0.2  # how often the last healthy members are touched at all
POLL_S = 0.02
RESTART_S = (0.0, 2.0)
# Of the coordinator, between two faults.  After a restart it judges nobody's silence before its
# members had the time to come back (6 s and 30 s); killed more often than that it never would.
REST_S = {"lan": 8.0, "wan": 34.0}
LINK_S = (0.2, 8.0)
STOP_S = (0.1, 60.0)
BLOCK_S = (0.5, 10.0)
COORDINATOR_STOP_S = (0.1, 30.0)
RESET_S = (0.05, 0.5)

# Kinds of events and how often they are drawn, if they are possible.
WEIGHTS = {
    "kill": 22,
    "burst": 3,
    "stop": 14,
    "freeze": 5,
    "block": 5,
    "join": 22,
    "leave": 7,
    "cut": 8,
    "cut-coordinator": 5,
    "unplug": 3,
    "reset": 7,
    "loss": 4,
    "delay": 4,
    "jitter": 2,
    "rate": 2,
    "coordinator-kill": 4,
    "coordinator-stop": 2,
}
NEEDS_LINKS = {
    "cut": "cut", "cut-coordinator": "cut", "unplug": "cut",
    "reset": "reset", "loss": "loss", "delay": "delay", "jitter": "jitter", "rate": "rate",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What `choose` may know."""

    healthy: int
    present: int  # started and living, also those that are stopped or on their way in
    ready: int  # spares
    least: int  # the world's range
    most: int
    min_world: int
    link_kinds: frozenset[str]
    freezer: bool
    coordinator_up: bool  # and nothing was done to it for a while


@dataclass(frozen=True, slots=True)
class Event:
    """kind, for how long, and how many are hit."""

    kind: str
    duration_s: float = 0.0
    victims: int = 1


def choose(dice: random.Random, now: Situation) -> Event | None:
    """Draws the next event; None if nothing is possible, or the world is better left alone."""
    events = [event for kind in WEIGHTS if (event := _draw(dice, kind, now)) is not None]
    if not events:
        return None
    return dice.choices(events, [WEIGHTS[event.kind] for event in events])[0]


def _draw(dice: random.Random, kind: str, now: Situation) -> Event | None:
    """Draws the details of a kind of event, or returns None if it may not happen now."""
    spare = now.healthy - now.min_world  # how many may go
    if spare < 1 and kind != "join" and dice.random() >= RARELY:
        return None  # else two members would be hit without a pause until somebody joins
    match kind:
        case "join":
            return Event(kind) if now.ready and now.present < now.most else None
        case "kill" | "leave":
            return Event(kind) if spare >= 1 else None
        case "burst":
            few = dice.choice((1, max(1, now.healthy // 2), now.healthy - 1))
            return Event(kind, victims=few) if now.healthy >= 2 and now.ready else None
        case "stop" | "freeze":
            length_s = spread(dice, STOP_S)
            possible = (spare >= 1 or length_s <= BRIEF_S) and now.healthy >= 1
            usable = kind == "stop" or now.freezer
            return Event(kind, length_s) if possible and usable else None
        case "block":
            return Event(kind, spread(dice, BLOCK_S)) if spare >= 1 else None
        case "coordinator-kill":
            return Event(kind, dice.uniform(*RESTART_S)) if now.coordinator_up else None
        case "coordinator-stop":
            length_s = spread(dice, COORDINATOR_STOP_S)
            return Event(kind, length_s) if now.coordinator_up else None
        case _:
            length_s = spread(dice, RESET_S if kind == "reset" else LINK_S)
            hit = 1 if kind in ("cut-coordinator", "unplug") else 2
            possible = now.healthy >= hit and (spare >= hit or length_s <= BRIEF_S)
            able = NEEDS_LINKS[kind] in now.link_kinds
            return Event(kind, length_s, hit) if possible and able else None


def spread(dice: random.Random, bounds: tuple[float, float]) -> float:
    """Draws a length evenly in its logarithm: short ones are as likely as long ones."""
    return math.exp(dice.uniform(math.log(bounds[0]), math.log(bounds[1])))


@dataclass(order=True, slots=True)
class _Undo:
    at: float
    order: int
    action: Callable[[], None] = field(compare=False)


class Nemesis:
    """Call `turn` often."""

    def __init__(self, world: World, seed: int, *, least: int, most: int) -> None:
        self.counts: dict[str, int] = dict.fromkeys(WEIGHTS, 0)
        self._world = world
        self._dice = random.Random(seed)
        self._least = least
        self._most = most
        self._undos: list[_Undo] = []
        self._orders = itertools.count()
        self._next_at = 0.0
        self._coordinator_rests_until = 0.0

    def turn(self) -> None:
        """Undoes what is over, keeps the world in its range, and maybe does something new."""
        now = time.monotonic()
        while self._undos and self._undos[0].at <= now:
            heapq.heappop(self._undos).action()
        self._fill()
        if now >= self._next_at:
            self._next_at = now + spread(self._dice, INTERVAL_S)
            event = choose(self._dice, self._situation())
            if event is not None:
                self.counts[event.kind] += 1
                self._do(event)

    def calm(self) -> None:
        """Undoes everything at once."""
        deadline_at = time.monotonic() + START_S
        while self._undos:
            heapq.heappop(self._undos).action()
            time.sleep(0.0 if self._undos else POLL_S)
            if time.monotonic() > deadline_at:
                raise Trouble("the coordinator does not listen again")

    def _situation(self) -> Situation:
        world = self._world
        kinds = world.links.kinds if world.links is not None else frozenset[str]()
        return Situation(
            healthy=len(world.healthy()),
            present=sum(not peer.stopped and not peer.told for peer in world.peers),
            ready=len(world.ready_spares()),
            least=self._least,
            most=self._most,
            min_world=world.settings.min_world,
            link_kinds=kinds,
            freezer=all(host.freezer for host in world.places.hosts),
            coordinator_up=time.monotonic() >= self._coordinator_rests_until,
        )

    def _fill(self) -> None:
        """Replaces what is missing below the range, and keeps spares for the next events."""
        world = self._world
        present = sum(not peer.stopped and not peer.told for peer in world.peers)
        for spare in world.ready_spares():
            if present >= self._least:
                break
            world.start(spare)
            world.close_fault(world.open_fault("join", processes=(spare.name,)))
            present += 1
        wanted = max(2, self._least - present)
        while len(world.spares) < wanted:
            load = {host.name: 0 for host in world.places.hosts}
            for peer in (*world.peers, *world.spares):
                load[peer.host.name] += 1
            host = min(world.places.hosts, key=lambda one: (load[one.name], self._dice.random()))
            world.prepare(host, rejoin=self._dice.random() < 0.5)

    # ---- what is done

    def _do(self, event: Event) -> None:
        world = self._world
        healthy = world.healthy()
        victims = self._dice.sample(healthy, min(event.victims, len(healthy)))
        match event.kind:
            case "kill":
                world.kill(victims)
            case "burst":
                world.kill(victims, "burst")
            case "join":
                spare = world.ready_spares()[0]
                world.start(spare)
                world.close_fault(world.open_fault("join", processes=(spare.name,)))
            case "leave":
                names = tuple(peer.name for peer in victims)
                world.close_fault(world.open_fault("leave", processes=names))
                for peer in victims:
                    peer.told = True
                    peer.child.order("leave")
            case "stop":
                self.stop(victims[0], event.duration_s)
            case "block":
                self.block(victims[0], event.duration_s)
            case "freeze":
                self.freeze(victims[0], event.duration_s)
            case "coordinator-kill":
                self.restart_coordinator(event.duration_s)
            case "coordinator-stop":
                self.stop_coordinator(event.duration_s)
            case _:
                self._disturb(event, [peer.host.name for peer in victims])

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._undos, _Undo(time.monotonic() + delay_s, next(self._orders), action))

    def stop(self, victim: Peer, duration_s: float) -> Fault:
        world = self._world
        fault = world.open_fault("stop", processes=(victim.name,), text=f"{duration_s:.2f} s")
        victim.child.signal(signal.SIGSTOP)
        victim.stopped = True

        def resume() -> None:
            if victim.living:
                victim.child.signal(signal.SIGCONT)
            victim.stopped = False
            world.close_fault(fault)

        self.after(duration_s, resume)
        return fault

    def block(self, victim: Peer, duration_s: float) -> None:
        """Lets the program of a peer hang between two steps; the library beats on."""
        fault = self._world.open_fault(
            "block", processes=(victim.name,), text=f"{duration_s:.2f} s"
        )
        victim.child.order(f"stuck {duration_s:.3f}")
        self.after(duration_s, lambda: self._world.close_fault(fault))

    def freeze(self, victim: Peer, duration_s: float) -> None:
        """Freezes all processes of a host, as a paused virtual machine is."""
        world = self._world
        host = victim.host
        frozen = [p for p in world.peers if p.host is host and not p.stopped]
        names = tuple(peer.name for peer in frozen)
        fault = world.open_fault("freeze", processes=names, text=f"{duration_s:.2f} s")
        for peer in frozen:
            peer.stopped = True
        host.freeze(peer.child.pid for peer in frozen)

        def thaw() -> None:
            host.thaw()
            for peer in frozen:
                peer.stopped = False
            world.close_fault(fault)

        self.after(duration_s, thaw)

    def restart_coordinator(self, delay_s: float) -> None:
        world = self._world
        self._coordinator_rests_until = math.inf
        fault = world.kill_coordinator()

        def restart() -> None:
            world.start_coordinator()
            self._when_listening(fault)

        self.after(delay_s, restart)

    def _when_listening(self, fault: Fault) -> None:
        if self._world.coordinator_listens():
            self._world.close_fault(fault)
            self._rest()
        else:
            self.after(POLL_S, lambda: self._when_listening(fault))

    def _rest(self) -> None:
        rest_s = REST_S[self._world.settings.profile]
        self._coordinator_rests_until = time.monotonic() + rest_s

    def stop_coordinator(self, duration_s: float) -> None:
        world = self._world
        coordinator = world.coordinator
        assert coordinator is not None
        self._coordinator_rests_until = math.inf
        fault = world.open_fault("coordinator-stop", text=f"{duration_s:.2f} s")
        coordinator.signal(signal.SIGSTOP)
        world.coordinator_stopped = True

        def resume() -> None:
            coordinator.signal(signal.SIGCONT)
            world.coordinator_stopped = False
            world.close_fault(fault)
            self._rest()

        self.after(duration_s, resume)

    def _disturb(self, event: Event, hosts: list[str]) -> None:
        world, dice = self._world, self._dice
        if event.kind == "cut-coordinator":
            hosts = [hosts[0], COORDINATOR_HOST]
        one, two = hosts[0], hosts[-1]
        if event.kind == "unplug":
            others = [h.name for h in (world.places.coordinator, *world.places.hosts)]
            links = [link for h in others if h != one for link in both_ways("cut", one, h)]
        elif one == two:  # two peers of one host: nothing lies between them
            return
        else:
            links = self._links_between(event.kind.partition("-")[0], one, two)
        if event.kind != "unplug" and len(links) == 2 and dice.random() < 0.5:
            links = dice.sample(links, 1)
        shown = ", ".join(f"{link.source}>{link.target}" for link in links[:2])
        fault = world.open_fault(
            event.kind,
            hosts=tuple(hosts),
            links=links,
            text=f"{shown} {event.duration_s:.2f} s",
        )
        self.after(event.duration_s, lambda: world.close_fault(fault))

    def _links_between(self, kind: str, one: str, two: str) -> list[LinkFault]:
        dice = self._dice
        match kind:
            case "cut":
                return list(both_ways("cut", one, two))
            case "reset":
                return list(both_ways("reset", one, two))
            case "loss":
                return list(both_ways("loss", one, two, dice.choice((0.01, 0.05, 0.2))))
            case "jitter":
                return list(both_ways("jitter", one, two, spread(dice, (5.0, 100.0))))
            case "rate":
                return list(both_ways("rate", one, two, spread(dice, (5.0, 100.0))))
            case _:
                return list(both_ways("delay", one, two, spread(dice, (5.0, 300.0))))
