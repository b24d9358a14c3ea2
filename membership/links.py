"""Broken links between peers that both live.

A link that stays down although its ends dial again gets both ends a strike, accuser and accused
alike, because from outside they cannot be told apart.  The first strikes cost a flush that keeps
everybody: the step is tried again over fresh connections.  A peer that collects `strikes_max`
within the window is evicted, and of two the one with more: who accuses many is struck by each of
them, while each of them is struck once.

Invariant: a pair is struck at most once per epoch, so a report that is repeated every heartbeat,
or made by both ends, weighs as much as one.
"""

from __future__ import annotations

from collections.abc import Sequence

from pccl.membership.core import Core, Peer, name


class Links:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._strikes: dict[int, list[float]] = {}
        self._struck: set[tuple[int, int]] = set()  # pairs, in the epoch below
        self._epoch = 0

    def reported_down(
        self, accuser: Peer, epoch: int, peer_ids: Sequence[bytes], now_s: float
    ) -> None:
        """Weighs a report that the accuser has no live lane to these peers."""
        core = self._core
        if core.flushing or epoch != core.epoch() or not core.is_member(accuser.incarnation):
            return
        if now_s < core.installed_s + core.config.link_settle_s:
            return  # the ends are still dialling
        if epoch != self._epoch:
            self._epoch = epoch
            self._struck.clear()
        by_id = {p.peer_id: p for p in core.members()}
        for peer_id in peer_ids:
            accused = by_id.get(peer_id)
            if accused is None or accused is accuser:
                continue
            if accused.native is None or not accused.present() or accused.silent:
                continue  # its own silence is judged, not its links
            self._strike(accuser, accused, now_s)

    def _strike(self, accuser: Peer, accused: Peer, now_s: float) -> None:
        low, high = sorted((accuser.incarnation, accused.incarnation))
        if (low, high) in self._struck:
            return
        self._struck.add((low, high))
        core = self._core
        for peer in (accuser, accused):
            recent = [
                t for t in self._strikes.get(peer.incarnation, []) if t > self._start_s(now_s)
            ]
            self._strikes[peer.incarnation] = [*recent, now_s]
        for gone in [i for i in self._strikes if i not in core.peers]:
            self._strikes.pop(gone)
        worst = max((accuser, accused), key=lambda p: (self._count(p), self._rank(p.incarnation)))
        core.log("warning", f"link between {name(accuser)} and {name(accused)} is down")
        if self._count(worst) >= core.config.strikes_max:
            core.lose(worst, f"{self._count(worst)} broken links within a short time")
        else:
            core.want_flush(f"link {name(accuser)} - {name(accused)} is down")

    def _start_s(self, now_s: float) -> float:
        return now_s - self._core.config.strike_window_s

    def _count(self, peer: Peer) -> int:
        return len(self._strikes.get(peer.incarnation, ()))

    def _rank(self, incarnation: int) -> int:
        view = self._core.current()
        assert view is not None
        return view.incarnations().index(incarnation)
