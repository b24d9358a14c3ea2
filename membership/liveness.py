"""Who is alive: connection deaths, leases, and the time that the coordinator itself lost.

A lost connection plus one refused dial proves a death at once; that is how a killed process is
found within milliseconds.  A dial that is accepted proves nothing (the kernel of a stopped process
accepts too; and a dying one may accept before its listener closes), so it is repeated, from 10 ms
doubling, until the peer is back or the grace is over.  From then on the lease alone judges: native
heartbeats renew it, so a program whose Python is busy for a minute keeps its place.

A refused dial proves nothing about a peer whose native connection is there and beats (its port may
be filtered): it is dialled again.  The kernel closes all connections of a killed process at once,
so nobody waits for that.

A lease that ends makes a peer *silent*, not dead: a flush no longer waits for it, but as long as
no view excludes it, its next heartbeat brings it back.  One that reported before it fell silent is
in the view that the flush made, and costs another one.

Who never had a native connection has nothing to come back for: it goes with its agent connection.
Nor is it dialled: where it says that it listens nobody has proved.

Invariant: nobody is lost by silence while the coordinator's own absence can explain it: a pause
moves every lease, and after a restart, or a pause so long that all connections may have been given
up meanwhile, none ends before `reattach_window_s`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pccl.membership.core import Core, Peer, name
from pccl.membership.events import Dialled, ProbeListener

PROBE_FIRST_S: Final = 0.01  # a process that exits closes its sockets within about this
PROBE_SLOWEST_S: Final = 0.5
BEATS_MISSED_MAX: Final = 2  # of a peer that is dialled, before a refusal is believed
UNPROVEN_GRACE_S: Final = 3.0  # without its agent, for one whose engine has never been here
BOOT_PROBE_S: Final = 1.0  # after a restart most members are back by then; the others are dialled


@dataclass(slots=True)
class _Doubt:
    """A peer that lost a connection and was not yet proven alive or dead."""

    until_s: float
    probe_at_s: float
    delay_s: float
    dialling: bool


class Liveness:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._doubts: dict[int, _Doubt] = {}
        self._detached: dict[int, float] = {}  # peers without an agent connection: since when
        self._leases_checked_until_s = core.started_s
        self._leases_not_before_s = core.started_s
        profile = core.config.profile
        if core.peers:
            self._leases_not_before_s = core.started_s + profile.reattach_window_s
        for incarnation, peer in core.peers.items():
            first_s = core.started_s + BOOT_PROBE_S
            until_s = self._leases_not_before_s
            if peer.was_native:  # where others say that they listen nobody has proved
                doubt = _Doubt(until_s, first_s, PROBE_SLOWEST_S, dialling=False)
                self._doubts[incarnation] = doubt
            self._detached[incarnation] = core.started_s

    # -------------------------------------------------------------- events

    def admitted(self, peer: Peer, now_s: float) -> None:
        self._detached.pop(peer.incarnation, None)
        self._leases_checked_until_s = min(self._leases_checked_until_s, self._expiry_s(peer))

    def attached(self, peer: Peer) -> None:
        """A connection of the peer is (again) there."""
        if peer.agent is not None:
            self._detached.pop(peer.incarnation, None)
        if peer.agent is not None and peer.native is not None:
            self._doubts.pop(peer.incarnation, None)

    def connection_lost(self, peer: Peer, now_s: float) -> None:
        if peer.gone is not None:
            return
        if peer.agent is None:
            self._detached.setdefault(peer.incarnation, now_s)
            if not peer.was_native:
                return  # where it says it listens nobody has proved yet: it is not dialled
        until_s = now_s + self._core.config.profile.suspect_grace_s
        doubt = self._doubts.get(peer.incarnation)
        if doubt is None:
            doubt = _Doubt(until_s, now_s, PROBE_FIRST_S, dialling=False)
            self._doubts[peer.incarnation] = doubt
        else:  # its other connection: dial again at once
            doubt.until_s, doubt.probe_at_s, doubt.delay_s = until_s, now_s, PROBE_FIRST_S
        self._probe(peer, doubt, now_s)

    def dialled(self, event: Dialled, now_s: float) -> None:
        if self._core.outdated:
            return
        peer = self._core.peers.get(event.incarnation)
        doubt = self._doubts.get(event.incarnation)
        if doubt is not None:
            doubt.dialling = False
        if peer is None or peer.peer_id != event.peer_id:
            return
        if event.alive or self._beats(peer, now_s):
            if doubt is not None and doubt.probe_at_s <= now_s:
                self._probe(peer, doubt, now_s)
            return
        if peer.agent is not None and peer.native is not None:
            return  # it re-attached while the dial was under way, so it lives
        self._core.lose(peer, "its connection ended and its port refuses")

    def _beats(self, peer: Peer, now_s: float) -> bool:
        heartbeat_s = self._core.config.profile.heartbeat_s
        return peer.native is not None and now_s < peer.last_beat_s + BEATS_MISSED_MAX * heartbeat_s

    def is_over(self, peer: Peer, now_s: float) -> bool:
        """Says whether the peer's lease has ended."""
        return now_s >= self._expiry_s(peer)

    def asked_after(self, peer: Peer, now_s: float) -> None:
        """Dials a peer that is said to have ended, if that could prove it."""
        attached = peer.agent is not None and peer.native is not None
        if attached or peer.incarnation in self._doubts:
            return
        until_s = now_s + self._core.config.profile.suspect_grace_s
        doubt = _Doubt(until_s, now_s, PROBE_FIRST_S, dialling=False)
        self._doubts[peer.incarnation] = doubt
        self._probe(peer, doubt, now_s)

    def beat(self, peer: Peer, now_s: float) -> None:
        peer.last_beat_s = now_s
        if peer.silent:
            peer.silent = False
            self._core.log("info", f"peer {name(peer)} is heard again")

    def paused(self, duration_s: float) -> None:
        """Gives everybody the time that this process slept."""
        for peer in self._core.peers.values():
            peer.last_beat_s += duration_s
        for doubt in self._doubts.values():
            doubt.until_s += duration_s
        for incarnation in self._detached:
            self._detached[incarnation] += duration_s
        back_by_s = self._core.back_by_s(duration_s)
        self._leases_not_before_s = max(self._leases_not_before_s + duration_s, back_by_s)
        if back_by_s:
            self._detached = dict.fromkeys(self._detached, self._core.now_s)

    # -------------------------------------------------------------- time

    def dials_a_member(self) -> bool:
        """Says whether a dial is under way that may prove a member's death."""
        return any(d.dialling and self._core.is_member(i) for i, d in self._doubts.items())

    def deadline_s(self) -> float | None:
        times = [d.probe_at_s for d in self._doubts.values() if not d.dialling]
        times += [self._agent_due_s(i, since_s) for i, since_s in self._detached.items()]
        if self._core.peers:
            times.append(self._leases_checked_until_s)
        return min(times, default=None)

    def advance(self, now_s: float) -> None:
        """Carries out what is due."""
        core = self._core
        for table in (self._doubts, self._detached):
            for incarnation in list(table):
                known = core.peers.get(incarnation)
                if known is None or known.gone is not None:
                    table.pop(incarnation)
        for incarnation, doubt in list(self._doubts.items()):
            if now_s >= doubt.until_s:
                self._doubts.pop(incarnation)  # from here on the lease judges
            elif now_s >= doubt.probe_at_s:
                self._probe(core.peers[incarnation], doubt, now_s)
        for incarnation, since_s in list(self._detached.items()):
            if now_s >= self._agent_due_s(incarnation, since_s):
                self._detached.pop(incarnation)
                core.lose(core.peers[incarnation], "its member agent did not come back")
        if now_s >= self._leases_checked_until_s:
            self._check_leases(now_s)

    def _agent_due_s(self, incarnation: int, since_s: float) -> float:
        """Returns when the agent of a peer that is without it must be back."""
        peer, grace_s = self._core.peers.get(incarnation), self._core.config.detached_grace_s
        if peer is None or peer.was_native:
            return since_s + grace_s
        return max(since_s + min(grace_s, UNPROVEN_GRACE_S), self._leases_not_before_s)

    def _check_leases(self, now_s: float) -> None:
        core = self._core
        for peer in list(core.peers.values()):
            if now_s < self._expiry_s(peer) or peer.gone is not None:
                continue
            if peer.silent and (core.flushing or core.flush_reasons):
                continue
            silence_s = now_s - peer.last_beat_s
            reason = f"no heartbeat for {silence_s:.1f} s"
            if core.is_member(peer.incarnation) and not core.is_drained(peer):
                peer.silent = True
                core.log("warning", f"peer {name(peer)} is silent: {reason}")
                core.want_flush(f"{name(peer)}: {reason}")
            else:
                core.lose(peer, reason)
        judged = [p for p in core.peers.values() if not p.silent and p.gone is None]
        lease_s = core.config.profile.lease_s
        self._leases_checked_until_s = min(
            (self._expiry_s(p) for p in judged), default=now_s + lease_s
        )
        # A heartbeat brings a silent peer back, and with it a lease that is not in the minimum.
        if any(p.silent for p in core.peers.values()):
            later_s = now_s + lease_s
            self._leases_checked_until_s = min(self._leases_checked_until_s, later_s)

    def _expiry_s(self, peer: Peer) -> float:
        lease_s = self._core.config.profile.lease_s
        if not peer.was_native:  # its admission may wait for a slow disk, and it for its admission
            lease_s = max(lease_s, self._core.config.detached_grace_s)
        return max(peer.last_beat_s + lease_s, self._leases_not_before_s)

    def _probe(self, peer: Peer, doubt: _Doubt, now_s: float) -> None:
        if doubt.dialling:
            return
        if peer.port == 0:  # nobody can dial it, alive or dead: its lease judges
            doubt.probe_at_s = doubt.until_s
            return
        doubt.dialling = True
        doubt.probe_at_s = now_s + doubt.delay_s
        doubt.delay_s = min(2 * doubt.delay_s, PROBE_SLOWEST_S)
        timeout_s = self._core.config.profile.probe_timeout_s
        self._core.effects.append(
            ProbeListener(peer.peer_id, peer.incarnation, peer.host, peer.port, timeout_s)
        )
