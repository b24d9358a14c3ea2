"""Who is in the run, as seen from one member at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from pccl.outcome import Peer


@dataclass(frozen=True, slots=True)
class View:
    """An epoch and its members in rank order; `rank` is this peer's, -1 while it is no member."""

    epoch: int
    members: tuple[Peer, ...]
    rank: int

    @property
    def world_size(self) -> int:
        return len(self.members)
