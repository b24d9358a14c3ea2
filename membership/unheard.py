"""A flush in which nobody speaks: how long newcomers wait for members that may never come back.

Stopped processes and frozen machines keep their connections, so nothing proves them dead; members
that only this coordinator cannot hear may even go on among themselves.  They hold the only state of
the run, so by default it waits for them, and newcomers have deadlines of their own.  Whoever runs
the coordinator may say otherwise: with `abandon_after_s` the view is given up once no member has
been heard for so long and enough newcomers for a first view have waited at one entry for as long.
Its members are told so if they wake.

Invariant: no view is given up while one of those who could decide its flush is heard, or for
newcomers that could not begin without it at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from pccl.membership.choosing import Choosing
from pccl.membership.core import Core


class Unheard:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._choosing = Choosing(core)
        self._warned = False

    def for_s(self, deciding: Sequence[int], now_s: float) -> float:
        """Returns how long the newest heartbeat of these members has been ago."""
        heard = [self._core.peers[i].last_beat_s for i in deciding]
        return max(0.0, now_s - max(heard, default=now_s))

    def why_wait(self, unheard_s: float) -> str | None:
        """Says what newcomers wait for, once members that speak would have been heard."""
        if unheard_s < self._core.config.profile.lease_s:
            return None
        text = f"waits: no member has been heard for {unheard_s:.0f} s; "
        after_s = self._core.config.abandon_after_s
        if after_s is None:
            return text + "they are never given up (pccl coordinator --abandon-after)"
        return text + f"they are given up when enough newcomers have waited for {after_s:g} s, too"

    def give_up(self, unheard_s: float, now_s: float) -> str | None:
        """Returns why the view is given up, and keeps that for its members; None: it is not yet."""
        core = self._core
        after_s = core.config.abandon_after_s
        if after_s is None or unheard_s < after_s or not self._choosing.could_begin(after_s, now_s):
            self._warn(unheard_s)
            return None
        self._warned = False
        why = f"given up with its whole view: no member was heard for {unheard_s:.0f} s"
        core.abandoned = {p.incarnation: why for p in core.members() if p.present()}
        return why

    def _warn(self, unheard_s: float) -> None:
        """Tells the log once why newcomers wait."""
        why = self.why_wait(unheard_s)
        waiting = [p for p in self._core.learners() if p.present()]
        if why is not None and waiting and not self._warned:
            self._core.log("warning", f"{len(waiting)} newcomers: {why}")
        self._warned = why is not None and (self._warned or bool(waiting))
