"""Broken links between peers that both live: repair first, blame last.

What one end reports about the other is a directed edge; what is done about it is done per pair:

    OK --reported down, link_settle_s--> ROUTED through a third that both reach --works--> ROUTED
    ROUTED --down for route_timeout_s--> ROUTED through the next, at most RELAYS_TRIED_MAX
    no third (left), and down for route_timeout_s more --> UNROUTABLE
    ROUTED or OK --both ends say that the direct lanes work--> OK, but watched for a while

The native core has dialled again before anything is reported, and goes on with that.  A relay is
the least loaded member that both ends reach, never one that has just failed as a relay.  None of
this aborts a step.  Only pairs that nothing helps cost membership: both ends get a strike, and the
members given up are a minimum-weight cover of these pairs (`cover`).  From outside accuser and
accused cannot be told apart, so a liar who accuses many is the cover, and each victim has one
edge.  Between the two of one edge the one of less standing goes: who accused others that did not
see it so, who has more strikes, who came later.  With two members that is the younger.

A pair that broke is watched for `watch_first_s`, doubling to `watch_max_s` with every relapse:
`Core.apart` names these pairs, for views that order members; a relapse is routed at once.

Invariants: nobody is given up while a third can relay; a report that is repeated, or made by both
ends, weighs as much as one; who is silent, or on its way out, is judged by that and not by links.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pccl.membership.core import Core, Peer, name
from pccl.membership.cover import minimum_cover
from pccl.membership.peer import BEATS_LATE_MAX
from pccl.transport.native_frames import Route, Routes

RELAYS_TRIED_MAX: Final = 2  # a pair that two relays cannot help is not the relays' fault
EDGES_MAX: Final = 4096  # remembered at a time; 1024 members cannot all be broken with all
STRIKES_KEPT_MAX: Final = 64  # per member within the window

Pair = tuple[int, int]  # incarnations, lower first


@dataclass(slots=True)
class _Edge:
    """One pair that was reported, from the first report until nobody needs to remember it."""

    down: dict[int, float] = field(default_factory=dict)  # accuser: since when it says so
    relayed: set[int] = field(default_factory=set)  # ends that say the relay works
    via: int | None = None
    routed_s: float = 0.0
    tried: tuple[int, ...] = ()
    blamed: bool = False  # strikes were given, in this epoch
    watch_s: float = 0.0
    until_s: float = 0.0  # watched until then

    def since_s(self) -> float:
        return min(self.down.values())


class Links:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._edges: dict[Pair, _Edge] = {}
        self._strikes: dict[int, list[float]] = {}
        self._bad_relays: dict[int, float] = {}  # failed as a relay: until when it is spared
        self._told: dict[int, tuple[Route, ...] | None] = {}  # None: tell it again
        self._epoch = 0
        self.deadline_s: float | None = None

    # -------------------------------------------------------------- events

    def beat(
        self,
        peer: Peer,
        epoch: int,
        down: Sequence[bytes],
        relayed: Sequence[bytes],
        now_s: float,
    ) -> None:
        """Takes in what a heartbeat says about its sender's links; all that it names, and by
        silence all that it does not."""
        core = self._core
        if not self._counts(peer, epoch):
            return
        by_id = {p.peer_id: p.incarnation for p in core.members()}
        bad = {by_id[i] for i in down if i in by_id} - {peer.incarnation}
        carried = {by_id[i] for i in relayed if i in by_id} - {peer.incarnation} - bad
        for other in sorted(bad):
            self._report(peer.incarnation, other, now_s)
        for other in sorted(carried):
            if (edge := self._edge(_pair(peer.incarnation, other))) is not None:
                edge.relayed.add(peer.incarnation)
        for pair, edge in self._edges.items():
            if peer.incarnation in pair:
                other = pair[0] + pair[1] - peer.incarnation
                if other not in bad:
                    edge.down.pop(peer.incarnation, None)
                if other not in carried:
                    edge.relayed.discard(peer.incarnation)
        for other in self._vias(peer.incarnation):
            edge = self._edges[_pair(peer.incarnation, other)]
            if edge.relayed and not edge.down:
                edge.tried = ()  # it works; who dials knows that it does, the other end need not
            elif other not in carried:
                self._told[peer.incarnation] = None  # not in force there (yet)

    def reported_down(
        self, accuser: Peer, epoch: int, peer_ids: Sequence[bytes], now_s: float
    ) -> None:
        """Weighs a report between heartbeats, or evidence that bytes do not get through."""
        core = self._core
        if not self._counts(accuser, epoch):
            return
        by_id = {p.peer_id: p.incarnation for p in core.members()}
        for peer_id in peer_ids:
            if peer_id in by_id and by_id[peer_id] != accuser.incarnation:
                self._report(accuser.incarnation, by_id[peer_id], now_s)

    def _counts(self, peer: Peer, epoch: int) -> bool:
        """Says whether what a peer reports is about a view that is in force."""
        core = self._core
        if core.flushing or core.view is None or not core.is_member(peer.incarnation):
            return False
        return epoch >= core.view.epoch

    def paused(self, duration_s: float) -> None:
        for edge in self._edges.values():
            edge.down = {i: at + duration_s for i, at in edge.down.items()}
            edge.routed_s += duration_s

    def _report(self, accuser: int, accused: int, now_s: float) -> None:
        edge = self._edge(_pair(accuser, accused))
        if edge is not None:
            edge.down.setdefault(accuser, now_s)

    def _edge(self, pair: Pair) -> _Edge | None:
        if pair not in self._edges and len(self._edges) >= EDGES_MAX:
            return None
        return self._edges.setdefault(pair, _Edge())

    # -------------------------------------------------------------- time

    def advance(self, now_s: float) -> None:
        core = self._core
        self.deadline_s = None
        if core.flushing or not self._edges:
            return
        self._forget(now_s)
        times: list[float] = []
        lost: list[Pair] = []
        for pair in sorted(self._edges):
            edge = self._edges[pair]
            if edge.down and self._to_blame(pair, now_s):
                due_s = self._treat(pair, edge, now_s)
                if due_s <= now_s:
                    lost.append(pair)
                else:
                    times.append(due_s)
            elif self._recovered(edge, now_s):
                core.log("info", f"link {self._names(pair)} works again")
                edge.via, edge.tried = None, ()
        if lost:
            self._give_up(lost, now_s)
        core.apart = frozenset(p for p, e in self._edges.items() if e.down or e.until_s > now_s)
        self._tell()
        self.deadline_s = min(times, default=None)

    def _forget(self, now_s: float) -> None:
        """Drops edges of members that are gone, and those that have been whole long enough."""
        core = self._core
        if core.epoch() != self._epoch:
            self._epoch = core.epoch()
            self._told.clear()
            for edge in self._edges.values():  # what a view before this one saw is told again
                edge.down, edge.blamed = {}, False
        for pair, edge in list(self._edges.items()):
            whole = not edge.down and not edge.relayed and edge.via is None
            if not all(map(core.is_member, pair)) or (whole and now_s >= edge.until_s):
                self._edges.pop(pair)
            elif edge.via is not None and not self._serves(edge.via):
                edge.via = None  # the relay left the run, or fell silent: the next one, at once
        for table in (self._strikes, self._bad_relays, self._told):
            for incarnation in [i for i in table if i not in core.peers]:
                table.pop(incarnation)

    def _treat(self, pair: Pair, edge: _Edge, now_s: float) -> float:
        """Does what is due for a pair that is down; returns when to look again, or `now_s` if
        nothing is left to try."""
        core = self._core
        settle_s, patience_s = core.config.link_settle_s, core.config.profile.route_timeout_s
        if edge.via is None and not edge.tried:
            relapse = edge.until_s > now_s
            begin_s = edge.since_s() if relapse else edge.since_s() + settle_s
            begin_s = max(begin_s, core.installed_s + settle_s)
            if now_s < begin_s:
                return begin_s
        if edge.via is not None:
            until_s = max(edge.routed_s, edge.since_s()) + patience_s
            if now_s < until_s:
                return until_s
            self._bad_relays[edge.via] = now_s + core.config.watch_first_s
            edge.tried, edge.via = (*edge.tried, edge.via), None
        via = self._relay(pair, edge, now_s)
        if via is not None:
            self._watch(edge, now_s)
            edge.via, edge.routed_s = via, now_s
            relay = name(core.peers[via])
            core.log("warning", f"link {self._names(pair)} is down; {relay} relays")
            return now_s + patience_s
        since_s = max(edge.since_s(), core.installed_s, edge.routed_s)
        return since_s + settle_s + patience_s if not edge.tried else now_s

    def _watch(self, edge: _Edge, now_s: float) -> None:
        config = self._core.config
        edge.watch_s = min(max(config.watch_first_s, 2 * edge.watch_s), config.watch_max_s)
        edge.until_s = now_s + edge.watch_s

    def _recovered(self, edge: _Edge, now_s: float) -> bool:
        """Says whether a routed pair does without its relay."""
        settled_s = edge.routed_s + self._core.config.profile.route_timeout_s
        return edge.via is not None and not edge.down and not edge.relayed and now_s >= settled_s

    # -------------------------------------------------------------- relays

    def _serves(self, incarnation: int) -> bool:
        """Says whether a member may relay, or be reached by a relay, at all."""
        peer = self._core.peers.get(incarnation)
        return (
            peer is not None
            and self._core.is_member(incarnation)
            and peer.present()
            and peer.native is not None
            and not peer.silent
        )

    def _to_blame(self, pair: Pair, now_s: float) -> bool:
        """Says whether the link is what is wrong, rather than one of its ends."""
        late_s = BEATS_LATE_MAX * self._core.config.profile.heartbeat_s
        return all(
            self._serves(i) and now_s < self._core.peers[i].last_beat_s + late_s for i in pair
        )

    def _relay(self, pair: Pair, edge: _Edge, now_s: float) -> int | None:
        """Returns the least loaded member that both ends reach."""
        if len(edge.tried) >= RELAYS_TRIED_MAX:
            return None
        core = self._core
        load: dict[int, int] = {}
        for other in self._edges.values():
            if other.via is not None:
                load[other.via] = load.get(other.via, 0) + 1
        fit = [
            p.incarnation
            for p in core.members()
            if p.incarnation not in (*pair, *edge.tried)
            and self._bad_relays.get(p.incarnation, now_s) <= now_s
            and self._serves(p.incarnation)
            and p.port != 0  # nobody can dial it
            and all(self._reaches(p.incarnation, end) for end in pair)
        ]
        return min(fit, key=lambda i: (load.get(i, 0), i), default=None)

    def _reaches(self, one: int, other: int) -> bool:
        edge = self._edges.get(_pair(one, other))
        return edge is None or (not edge.down and edge.via is None and not edge.relayed)

    def _vias(self, incarnation: int) -> dict[int, int]:
        """Returns whom a member reaches through whom."""
        return {
            pair[0] + pair[1] - incarnation: edge.via
            for pair, edge in self._edges.items()
            if incarnation in pair and edge.via is not None
        }

    def _tell(self) -> None:
        """Sends each member its table, if it is not the one that is in force there."""
        core = self._core
        for peer in core.members():
            table = tuple(
                Route(core.peers[other].peer_id, core.peers[via].peer_id)
                for other, via in sorted(self._vias(peer.incarnation).items())
            )
            if self._told.get(peer.incarnation, ()) != table and peer.native is not None:
                self._told[peer.incarnation] = table
                core.send_native(peer, Routes(core.generation, core.epoch(), table))

    # -------------------------------------------------------------- blame

    def _give_up(self, lost: list[Pair], now_s: float) -> None:
        core = self._core
        for pair in lost:
            edge = self._edges[pair]
            if not edge.blamed:
                edge.blamed = True
                core.log("warning", f"link {self._names(pair)} is down, and nothing helps")
                for end in pair:
                    kept = [t for t in self._strikes.get(end, ()) if t > self._start_s(now_s)]
                    self._strikes[end] = [*kept, now_s][-STRIKES_KEPT_MAX:]
        # One that stands longest weighs less than any two, so it still goes if it accuses two.
        standing = sorted(
            (i for i in dict.fromkeys(i for pair in lost for i in pair)),
            key=lambda i: (*self._evidence(i), -len(self._strikes.get(i, ())), -i),
        )
        count = len(core.members())
        weights = {incarnation: count + place for place, incarnation in enumerate(standing)}
        for incarnation in sorted(minimum_cover(lost, weights)):
            others = [
                name(core.peers[a + b - incarnation]) for a, b in lost if incarnation in (a, b)
            ]
            text = f"no way between it and {', '.join(others[:8])}, direct or through others"
            core.lose(core.peers[incarnation], text)

    def _evidence(self, incarnation: int) -> tuple[int, int]:
        """Returns what speaks for a member: minus the links that it calls down and the other end
        does not, and minus all its links that are down, those too that may yet be helped."""
        mine = [edge for pair, edge in self._edges.items() if incarnation in pair and edge.down]
        return -sum(set(edge.down) == {incarnation} for edge in mine), -len(mine)

    def _start_s(self, now_s: float) -> float:
        return now_s - self._core.config.strike_window_s

    # -------------------------------------------------------------- for people

    def describe(self) -> list[dict[str, str]]:
        """Returns the links that are not as they should be, for the status."""
        core = self._core
        shown = []
        for pair, edge in sorted(self._edges.items()):
            if not all(i in core.peers for i in pair):
                continue
            via = core.peers.get(edge.via) if edge.via is not None else None
            state = "relayed" if edge.relayed else "down" if edge.down else "watched"
            line = {"between": self._names(pair), "state": state}
            shown.append(line if via is None else {**line, "via": name(via)})
        return shown

    def _names(self, pair: Pair) -> str:
        return " - ".join(name(self._core.peers[i]) for i in pair)


def _pair(one: int, other: int) -> Pair:
    return (one, other) if one < other else (other, one)
