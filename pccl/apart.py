"""Decides when newcomers whose first calls differ are told so.  No clock: `now_s` is passed in.

Before the first view nobody begins anything, so what peers call is compared by the coordinator
alone, which says that some wait elsewhere.  They may be on their way to the same call, one after
the other, so it is an error only once it has been so for a while.  But whoever was told first may
have ended by then, and its error must not leave the other one waiting.

Invariant: once it has been so for `HELD_S` nothing but coming in prevents the error.
"""

from __future__ import annotations

from typing import Final

HELD_S: Final = 2.0  # of waiting apart, seen from here, after which it counts
APART_S: Final = 3.0  # from when it was seen first until the error
_SAME: Final = "make shape, dtype, op and options of the first call agree on all peers"


class Apart:
    """What one newcomer at one stand-alone call has seen."""

    def __init__(self) -> None:
        self._why = ""
        self._since_s: float | None = None

    def look(self, apart: bool, why: str, now_s: float) -> str | None:
        """Returns what the call is to end with, once it is to.

        Args:
            apart: the coordinator says so now.
            why: and who waits where.
        """
        if self._since_s is None:
            if apart:
                self._why, self._since_s = why, now_s
            return None
        if not apart and now_s < self._since_s + HELD_S:
            self._since_s = None
            return None
        return f"{self._why}; {_SAME}" if now_s >= self._since_s + APART_S else None
