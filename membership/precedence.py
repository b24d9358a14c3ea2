"""Whether strangers wait while members wait for a decision.

A recovery is a few short exchanges with the members; between any two of them a crowd at the door
would get a turn, and each turn is longer than the exchange.  So while a decision is awaited nobody
is let in and no stranger is heard.  A decision may take long (a member that does not answer), and
the door must not stay shut for that: so strangers wait for a bounded time each time that something
begins to be awaited.

Invariant: strangers are held HELD_MAX_S at most between two moments at which nothing was awaited.
"""

from __future__ import annotations

from typing import Final

HELD_MAX_S: Final = 0.1  # several times what a recovery takes if all that it needs are there


class Precedence:
    def __init__(self) -> None:
        self._by_s: float | None = None  # when this recovery's time with precedence is over
        self.until_s: float | None = None  # strangers wait until then; None: they do not

    def note(self, members_wait: bool, now_s: float) -> bool:
        """Is told whether members wait for a decision; returns whether strangers wait for that."""
        if not members_wait:
            self._by_s = None
        elif self._by_s is None:
            self._by_s = now_s + HELD_MAX_S
        self.until_s = self._by_s if self._by_s is not None and now_s < self._by_s else None
        return self.until_s is not None
