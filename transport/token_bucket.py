"""How often something may be done.  Pure: told the time."""

from __future__ import annotations


class TokenBucket:
    """Grants `burst` at once and `rate_per_s` in the long run."""

    def __init__(self, *, burst: float, rate_per_s: float, now_s: float) -> None:
        self._burst = burst
        self._rate_per_s = rate_per_s
        self._tokens = burst
        self._at_s = now_s

    def take(self, now_s: float) -> float:
        """Takes one token; returns 0, or the seconds until there will be one (and takes none)."""
        elapsed_s = max(0.0, now_s - self._at_s)
        self._tokens = min(self._burst, self._tokens + elapsed_s * self._rate_per_s)
        self._at_s = now_s
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate_per_s
