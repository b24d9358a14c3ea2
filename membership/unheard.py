"""A flush in which nobody speaks: how long newcomers wait for members that may never come back.

Stopped processes and frozen machines keep their connections, so nothing proves them dead, and they
may hold the only state of the run.  While nobody else wants to go on, waiting for them costs
nothing.  But newcomers can come in nowhere meanwhile; so once they wait and no member has been
heard for `abandon_after_s`, the view is given up, and its members are told so if they wake.

Invariant: no view is given up while one of those who could decide its flush is heard.
"""

from __future__ import annotations

from collections.abc import Sequence

from pccl.membership.core import Core


class Unheard:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._warned = False

    def for_s(self, deciding: Sequence[int], now_s: float) -> float:
        """Returns how long the newest heartbeat of these members has been ago."""
        heard = [self._core.peers[i].last_beat_s for i in deciding]
        return max(0.0, now_s - max(heard, default=now_s))

    def why_wait(self, unheard_s: float) -> str | None:
        """Says what newcomers wait for, once members that speak would have been heard."""
        core = self._core
        if unheard_s < core.config.profile.lease_s:
            return None
        return (
            f"waits: no member has been heard for {unheard_s:.0f} s; "
            f"after {core.abandon_after_s():g} s they are given up"
        )

    def give_up(self, unheard_s: float) -> str | None:
        """Returns why the view is given up, and keeps that for its members; None: it is not yet."""
        core = self._core
        waiting = [p for p in core.learners() if p.present()]
        if not waiting:
            return None
        if unheard_s < core.abandon_after_s():
            why = self.why_wait(unheard_s)
            if why is not None and not self._warned:
                self._warned = True
                core.log("warning", f"{len(waiting)} newcomers: {why}")
            return None
        self._warned = False
        why = f"given up with its whole view: no member was heard for {unheard_s:.0f} s"
        core.abandoned = {p.incarnation: why for p in core.members() if p.present()}
        return why
