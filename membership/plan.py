"""A plan: a view that is to come, and how far its members have got with it.

Plans are not durable.  A coordinator that starts anew knows of none, and the peers are told so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from pccl.membership.view import View

LATE_STEPS: Final = 16  # a name is not late before it is overdue by so many steps
STEP_MAX: Final = (1 << 64) - 1


class Kind(Enum):
    JOIN = "join"  # newcomers that wait at an entry come in
    LEAVE = "leave"  # members that asked to go are left out
    REORDER = "reorder"  # the same members, other ranks
    WARM = "warm"  # links to newcomers that are not at an entry yet; nobody is asked to hold


class Phase(Enum):
    LINKS = "links"  # links open in the background; nobody promised anything
    HOLD = "hold"  # members are asked not to go on beyond a step


@dataclass(slots=True)
class Plan:
    kind: Kind
    view: View
    name: str
    base: tuple[int, ...]  # members of the view in force; none for the first view
    deadline_s: float
    phase: Phase = Phase.LINKS
    candidates: tuple[int, ...] = ()  # newcomers
    up: set[int] = field(default_factory=set)
    holds: dict[int, int] = field(default_factory=dict)
    within: int = 0  # steps within which some member expects the name; 0: none expects it
    renewed: bool = False  # members alone were late with their links, and had as long again
    edges: dict[int, int] = field(default_factory=dict)  # failed links per peer

    def __contains__(self, incarnation: int) -> bool:
        return incarnation in self.view or incarnation in self.base

    def everybody(self) -> tuple[int, ...]:
        """Returns the members and the newcomers."""
        return (*self.base, *self.candidates)

    def step(self) -> int:
        """Returns the first step that nobody starts before it hears more."""
        return max(self.holds.values())

    def expected_below(self) -> int:
        """Returns the step by which a member has come to the name, if any ever does."""
        return min(self.step() + 2 * self.within + LATE_STEPS, STEP_MAX)
