"""Links between peers: who dials whom, frames in order, resets with a prefix delivered, cuts,
and relays through a third peer where the coordinator says so.

Of two peers the one whose id sorts first dials, again and again while it knows the other.  A link
that comes up makes both ends say again what may have been lost, as HAVE and ASK do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tests.sim.peer_process import PeerProcess
    from tests.sim.world import World

DIAL_TIMEOUT_S: Final = 2.0  # then the engine reports that a planned link cannot be opened
RETRY_S: Final = 0.15
DOWN_AFTER_S: Final = 0.5
LANE_DEAD_S: Final = 1.5  # without a sign of life from the other end
DIRECT_AGAIN_S: Final = 2.0
SLOWNESS: Final = (0.3, 1.0, 1.0, 4.0)  # links between peers are unequal, and keep the order


class Link:
    __slots__ = (
        "cut_s",
        "dialling",
        "down_since_s",
        "ends",
        "last_s",
        "life",
        "relays",
        "slowness",
        "up",
        "via",
    )

    def __init__(self, ends: tuple[int, int], now_s: float, slowness: tuple[float, float]) -> None:
        self.ends = ends
        self.up = False
        self.via: PeerProcess | None = None  # through whom, if not directly
        self.relays = 0  # how often it came up so
        self.dialling = False
        self.down_since_s = now_s
        self.life = 0  # counts resets
        self.cut_s = [math.inf, math.inf]  # per direction: what was sent before arrives until then
        self.last_s = [0.0, 0.0]
        self.slowness = slowness


class Links:
    def __init__(self, world: World) -> None:
        self.world = world
        self.links: dict[tuple[int, int], Link] = {}

    def between(self, one: int, other: int) -> Link:
        ends = (one, other) if one < other else (other, one)
        link = self.links.get(ends)
        if link is None:
            choose = self.world.rng.choice
            slowness = (choose(SLOWNESS), choose(SLOWNESS))
            link = self.links[ends] = Link(ends, self.world.now_s, slowness)
        return link

    def is_up(self, one: int, other: int) -> bool:
        return self.between(one, other).up

    def down(self, peer: PeerProcess) -> tuple[bytes, ...]:
        """The members to which a peer has had no live lane for a while."""
        found = []
        for member in peer.engine.members:
            if member.incarnation != peer.incarnation:
                link = self.between(peer.incarnation, member.incarnation)
                if not link.up and self.world.now_s - link.down_since_s > DOWN_AFTER_S:
                    found.append(member.peer_id)
        return tuple(found)

    def relayed(self, peer: PeerProcess) -> tuple[bytes, ...]:
        found = []
        for member in peer.engine.members:
            if member.incarnation != peer.incarnation:
                link = self.between(peer.incarnation, member.incarnation)
                if link.up and link.via is not None:
                    found.append(member.peer_id)
        return tuple(found)

    # ------------------------------------------------------------ opening

    def learn(self, peer: PeerProcess, others: tuple[int, ...]) -> None:
        """A peer has heard of others; it dials those that sort after it."""
        peer.known = others
        self.dial_known(peer)

    def dial_known(self, peer: PeerProcess) -> None:
        for other in peer.known:
            link = self.between(peer.incarnation, other)
            target = self.world.by_incarnation[other]
            if not link.up and not link.dialling and peer.peer_id < target.peer_id:
                link.dialling = True
                self._dial(link, peer, target, self.world.now_s)

    def _dial(self, link: Link, peer: PeerProcess, target: PeerProcess, since_s: float) -> None:
        """Tries once, directly or through a third peer, and again until it works."""
        world = self.world
        via = None
        if self.blocked_s(peer, target) > world.now_s:
            via = self._relay(peer, target)
            if via is None:
                world.at(world.now_s + RETRY_S, peer, self._again, link, peer, target, since_s)
                return
        hops = 2 if via is None else 4
        at_s = world.now_s + hops * world.hop_s()
        world.at(at_s, None, self._arrive, link, peer, target, since_s, via)

    def blocked_s(self, one: PeerProcess, other: PeerProcess) -> float:
        """Until when something is cut between two peers."""
        world = self.world
        return max(
            world.blocked_until_s(("data", one.index, other.index)),
            world.blocked_until_s(("data", other.index, one.index)),
        )

    def _relay(self, peer: PeerProcess, target: PeerProcess) -> PeerProcess | None:
        via = peer.engine.routes.get(target.peer_id)
        relay = next((p for p in self.world.living() if p.peer_id == via), None)
        if relay is None or self.world.now_s < relay.stopped_until_s:
            return None
        free_s = max(self.blocked_s(peer, relay), self.blocked_s(relay, target))
        return relay if free_s <= self.world.now_s else None

    def _arrive(
        self,
        link: Link,
        peer: PeerProcess,
        target: PeerProcess,
        since_s: float,
        via: PeerProcess | None,
    ) -> None:
        world = self.world
        if not peer.alive:
            link.dialling = False
        elif not target.alive:
            world.at(world.now_s + RETRY_S, peer, self._again, link, peer, target, since_s)
        else:
            # A stopped process answers when it runs again.
            at_s = world.now_s + world.hop_s()
            world.at(at_s, target, self._opened, link, peer, target, via)

    def _again(self, link: Link, peer: PeerProcess, target: PeerProcess, since_s: float) -> None:
        world = self.world
        if target.incarnation not in peer.known:
            link.dialling = False
            return
        if world.now_s >= since_s + DIAL_TIMEOUT_S:
            peer.engine.link_failed(target.incarnation)
            since_s = world.now_s
        self._dial(link, peer, target, since_s)

    def _opened(
        self, link: Link, peer: PeerProcess, target: PeerProcess, via: PeerProcess | None
    ) -> None:
        link.dialling = False
        if not peer.alive:
            return
        link.up, link.via = True, via
        if via is not None:
            link.relays += 1
            self.world.at(self.world.now_s + DIRECT_AGAIN_S, peer, self._direct, link, link.life)
        target.link_up(peer.incarnation)
        self.world.at(self.world.now_s + self.world.hop_s(), peer, self._told, link, peer, target)

    def _told(self, link: Link, peer: PeerProcess, target: PeerProcess) -> None:
        if link.up:
            peer.link_up(target.incarnation)

    # ------------------------------------------------------------ frames

    def send(self, peer: PeerProcess, other: int, frame: Any) -> None:
        link = self.between(peer.incarnation, other)
        if not link.up or not peer.alive:
            return  # it is said again when the link comes up
        world = self.world
        way = 0 if peer.incarnation == link.ends[0] else 1
        target = world.by_incarnation[other]
        free_s = world.now_s
        if link.via is not None:
            if not link.via.alive:
                self.reset(link, 0.0)
                return
            free_s = max(free_s, link.via.stopped_until_s) + world.hop_s()
        else:
            free_s = max(free_s, world.blocked_until_s(("data", peer.index, target.index)))
        at_s = max(link.last_s[way], free_s + link.slowness[way] * world.hop_s())
        link.last_s[way] = at_s
        world.at(at_s, target, self._deliver, link, link.life, way, target, frame)

    def _deliver(self, link: Link, life: int, way: int, target: PeerProcess, frame: Any) -> None:
        if link.life == life or (link.life == life + 1 and self.world.now_s <= link.cut_s[way]):
            target.engine.data.receive(frame)

    # ------------------------------------------------------------ losing

    def judge(self, link: Link, life: int) -> None:
        """Nothing was heard over a lane for so long that both ends drop it and dial again."""
        if link.up and link.life == life and link.via is None:
            one, other = (self.world.by_incarnation[i] for i in link.ends)
            if self.blocked_s(one, other) > self.world.now_s:
                self.reset(link, 0.0)

    def _direct(self, link: Link, life: int) -> None:
        """The direct way is tried again in the background, and replaces the relay."""
        if link.up and link.life == life:
            one, other = (self.world.by_incarnation[i] for i in link.ends)
            if self.blocked_s(one, other) <= self.world.now_s:
                self.reset(link, 1.0)
            else:
                at_s = self.world.now_s + DIRECT_AGAIN_S
                self.world.at(at_s, None, self._direct, link, life)

    def reset(self, link: Link, fraction: float) -> None:
        """The connection ends; of what is under way a prefix arrives."""
        if not link.up:
            return
        world = self.world
        link.up, link.via = False, None
        link.life += 1
        link.down_since_s = world.now_s
        for way in (0, 1):
            link.cut_s[way] = world.now_s + fraction * max(0.0, link.last_s[way] - world.now_s)
            link.last_s[way] = world.now_s
        one, other = (world.by_incarnation[i] for i in link.ends)
        peer, target = (one, other) if one.peer_id < other.peer_id else (other, one)
        if peer.alive and not link.dialling:
            link.dialling = True
            world.at(world.now_s + world.hop_s(), peer, self._dial, link, peer, target, world.now_s)

    def lose(self, peer: PeerProcess, *, silently: bool) -> None:
        """A process has ended: its links end with what was under way, or hear nothing more."""
        for link in list(self.links.values()):
            if peer.incarnation in link.ends and link.up and not silently:
                self.reset(link, 0.0 if peer.abrupt else self.world.rng.random())

    def of(self, peer: PeerProcess) -> list[Link]:
        return [link for link in self.links.values() if peer.incarnation in link.ends and link.up]
