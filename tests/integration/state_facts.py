"""What members of `state_peer` have told of their steps: how long these took."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

BUSY = 8.0  # longer than the median: what a step may take on a machine that does other things, too


def _durations(facts: Sequence[dict[str, Any]]) -> list[float]:
    """Of steps, but for the first, to which members come one after the other."""
    return [float(fact["took_s"]) for fact in facts if fact.get("revision", 0) > 1]


def longest_s(facts: Sequence[dict[str, Any]]) -> float:
    return max(_durations(facts))


def delay_s(facts: Sequence[dict[str, Any]]) -> float:
    """How long they have waited for somebody in the longest step: what it took beyond what steps
    take here and now, be this machine busy or not."""
    return longest_s(facts) - BUSY * median(_durations(facts))
