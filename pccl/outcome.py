"""What became of a step, in terms a program can use."""

from __future__ import annotations

from dataclasses import dataclass

from pccl.base.ids import short_id


class Peer(bytes):
    """The id of a peer, 16 bytes; shows as its first eight hex digits."""

    __slots__ = ()

    def __repr__(self) -> str:
        return short_id(self)

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class Outcome:
    """A committed step.  Every member that was told COMMIT holds the same outcome and results.

    Attributes:
        contributors: the peers whose input is in every result, in rank order.
        epoch: the view in which the step committed.
        retries: attempts that were undone before.
        wire_bytes: bytes this peer sent for the step, headers and aborted attempts included.
        groups: the peer group of each participant, those of other groups included.
    """

    contributors: tuple[Peer, ...]
    epoch: int
    retries: int
    wire_bytes: int
    groups: tuple[int, ...] = ()

    @property
    def world_size(self) -> int:
        return len(self.contributors)
