"""What everybody is told of the run: who is in, and a newcomer why it is not.

Invariant: whoever is counted is told each change; else anybody's hello would be a message to all.
"""

from __future__ import annotations

from dataclasses import replace

from pccl.membership.core import Core, Peer, name
from pccl.membership.flushing import Flushing
from pccl.membership.messages import TEXT_CHARACTERS_MAX, World
from pccl.membership.peer import proven
from pccl.membership.replicas import why_apart

FRESH_BEATS = 2.5  # a newcomer says at every heartbeat at which entry it is


class News:
    def __init__(self, core: Core, flushing: Flushing) -> None:
        self._core = core
        self._flushing = flushing
        self._told = self._now()

    def tell_all(self) -> None:
        """Tells what has changed."""
        before, self._told = self._told, self._now()
        for peer in proven(self._core.peers):
            if self._told != before or not peer.told_world:
                peer.told_world = True
                self._tell(peer)

    def greet(self, peer: Peer) -> None:
        """Tells a peer that has come back, unless all will be told anyway."""
        if peer.was_native and self._now() == self._told:
            self._tell(peer)

    def tell_why(self, peer: Peer, now_s: float) -> None:
        """Tells a newcomer at an entry why it is not let in, when that has changed."""
        why = ""
        if not self._core.is_member(peer.incarnation):
            why = self._flushing.why_wait(now_s) or peer.misfit() or self._apart(peer, now_s)
        if why[:TEXT_CHARACTERS_MAX] != peer.told_why:
            peer.told_why = why[:TEXT_CHARACTERS_MAX]
            self._tell(peer)

    def _apart(self, peer: Peer, now_s: float) -> str:
        """Says which parts of its replica do not wait with it; before the first view, who of the
        same group waits elsewhere, while too few wait here to begin."""
        core, view = self._core, self._core.current()
        since_s = now_s - FRESH_BEATS * core.config.profile.heartbeat_s
        waiting = [p for p in core.learners() if p.present() and p.entry_seen_s > since_s]
        if view is not None:
            return why_apart(view, peer, waiting)
        others = (p for p in waiting if p.entry not in (None, peer.entry) and p.group == peer.group)
        other, least = next(others, None), core.effective_min_world()
        if other is None or sum(p.entry == peer.entry for p in waiting) >= least:
            return ""
        return (
            f"waits at '{peer.entry}', and peer {name(other)} at '{other.entry}'; the first view "
            f"takes {least} at the same entry"
        )

    def _tell(self, peer: Peer) -> None:
        self._core.send(peer, replace(self._told, waits=peer.told_why))

    def _now(self) -> World:
        view = self._core.current()
        members = 0 if view is None else len(view.members)
        min_world = self._core.effective_min_world()
        counted = len(proven(self._core.peers))
        return World(counted, members, self._core.epoch(), min_world=min_world)
