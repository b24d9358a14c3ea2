"""What a member keeps for newcomers under way: revisions, and the results that led from one to the
next.  `shared` makes and frees them.

Invariant: copies are made only where they leave as much memory free as they take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pccl.state.layout import Layout
from pccl.state.memory import available_bytes
from pccl.state.tensors import Bytes


@dataclass(slots=True, eq=False)
class Pin:
    """One revision as donors give it."""

    revision: int
    lineage: int
    root: bytes
    digests: bytes
    sequence: int  # of the memory, while nothing has been copied
    copies: list[Bytes] | None = None
    users: int = 0
    lost: bool = False
    precious: bool = False  # of a checkpoint, which cannot begin anew


@dataclass(slots=True)
class Results:
    """What led from a revision to the next."""

    layout: Layout
    content: list[Bytes] = field(default_factory=list)

    @property
    def byte_count(self) -> int:
        return self.layout.byte_count


def copies_of(parts: Sequence[Bytes]) -> list[Bytes] | None:
    """Copies these, in order; None if that would take more than half of the memory that is left."""
    if sum(map(len, parts)) > available_bytes() // 2:
        return None
    return [part.copy() for part in parts]
