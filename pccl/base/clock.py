"""Time as an argument: shells read a Clock, machines are told the time.

A clock is monotonic seconds from an arbitrary start; only differences mean anything.
"""

import time
from collections.abc import Callable
from typing import Final

Clock = Callable[[], float]

system_clock: Final[Clock] = time.monotonic


class ManualClock:
    """A clock for tests and simulations: it stands still until told to move."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def __call__(self) -> float:
        return self._now_s

    def advance(self, duration_s: float) -> None:
        """Moves time forward; it never goes back."""
        if duration_s < 0:
            raise ValueError(f"time does not go back ({duration_s} s)")
        self._now_s += duration_s


class Deadline:
    """A point in time that one wait after another counts down to."""

    def __init__(self, timeout_s: float, clock: Clock = system_clock) -> None:
        self._clock = clock
        self.at_s = clock() + timeout_s

    def remaining_s(self) -> float:
        """Returns the seconds left, never below zero."""
        return max(0.0, self.at_s - self._clock())

    def passed(self) -> bool:
        return self._clock() >= self.at_s
