"""Who is in the run, as seen from one member at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from pccl.outcome import Peer


@dataclass(frozen=True, slots=True)
class View:
    """An epoch and its members, group by group in rank order.

    Attributes:
        rank: this peer's, in its group; -1 while it is no member.
        groups: the group of each member.
        group: this peer's own.
    """

    epoch: int
    members: tuple[Peer, ...]
    rank: int
    groups: tuple[int, ...]
    group: int = 0

    @property
    def world_size(self) -> int:
        """The number of members of the own group."""
        return self.groups.count(self.group)
