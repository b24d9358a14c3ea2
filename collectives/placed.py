"""An operation as a caller asks for it, and as the engine is given it.

Shapes, roots and in-place rules depend on where this peer stands in the step's view, and that is
known only once the step has begun.  So a Request knows its name before (stand-alone operations are
entered by it) and is placed after.

Invariant: `Request.place` raises UsageError or returns memory that fits the view; it has sent and
changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pccl.base.errors import UsageError
from pccl.base.ids import short_id
from pccl.base.numbers import whole_number
from pccl.collectives.buffers import Buffer
from pccl.collectives.descriptor import Descriptor
from pccl.collectives.dtypes import Dtype

PEER_ID_BYTES: Final = 16
NOTHING: Final = Buffer(None, 0, 0, Dtype.U8, (0,), True)
"""Where a peer has no input, or no output."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Where this peer stands in the view that a step began in."""

    rank: int
    world_size: int
    peer_id: bytes

    def is_root(self, root: int | bytes) -> bool:
        """Says whether this peer is the root.  Raises UsageError if nobody can be."""
        if isinstance(root, bytes):
            return root == self.peer_id
        if root >= self.world_size:
            raise UsageError(f"root {root} is no rank: the step has {self.world_size} members")
        return root == self.rank


@dataclass(frozen=True, slots=True)
class Placed:
    """An operation that fits its step's view.

    `root` is a rank of that view or a peer id, -1 without one.  Counts are elements per rank, empty
    where all parts have the descriptor's count.
    """

    descriptor: Descriptor
    source: Buffer
    target: Buffer
    result: Any
    weight: float = 1.0
    root: int | bytes = -1
    send_counts: tuple[int, ...] = ()
    receive_counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """An operation whose arguments are as good as they can be known to be before its step."""

    name: str
    place: Callable[[Seat], Placed]


def check_root(root: Any, name: str = "root") -> int | bytes:
    """Returns a root as a rank or a peer id.  Raises UsageError if it is neither."""
    if isinstance(root, bytes):
        if len(root) != PEER_ID_BYTES:
            raise UsageError(
                f"{name} must be a rank or a peer id of 16 bytes, not {short_id(root)}"
            )
        return bytes(root)
    rank = whole_number(root)
    if rank is None or rank < 0:
        raise UsageError(f"{name} must be a rank (0, 1, ...) or a peer id, not {root!r}")
    return rank


def check_counts(counts: Any, name: str) -> tuple[int, ...]:
    """Returns rows per rank.  Raises UsageError unless all are whole numbers >= 0."""
    try:
        found = [whole_number(count) for count in counts]
    except TypeError:
        found = [None]
    rows = tuple(count for count in found if count is not None)
    if len(rows) < len(found):
        raise UsageError(f"{name} must be whole numbers, one for each rank, not {counts!r}")
    if any(count < 0 for count in rows):
        raise UsageError(f"{name} must not be negative: {rows}")
    return rows
