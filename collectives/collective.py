"""Which collectives there are, by their numbers on the wire.

Invariant: a number never changes its meaning (native/include/pccl/collective.hpp has the same).
"""

from __future__ import annotations

from enum import IntEnum


class Collective(IntEnum):
    """What an operation does with the members' arrays."""

    ALL_REDUCE = 0
    REDUCE_SCATTER = 1
    ALL_GATHER = 2
    BROADCAST = 3
    REDUCE = 4
    GATHER = 5
    SCATTER = 6
    ALL_TO_ALL = 7
    BARRIER = 8

    @property
    def label(self) -> str:
        return self.name.lower()

    @property
    def reduces(self) -> bool:
        """Says whether contributions become one value; the others move elements as they are."""
        return self in (Collective.ALL_REDUCE, Collective.REDUCE_SCATTER, Collective.REDUCE)
