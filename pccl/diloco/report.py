"""What an outer step came to, as the program is told."""

from __future__ import annotations

from dataclasses import dataclass

from pccl.outcome import Peer


@dataclass(frozen=True, slots=True)
class OuterStep:
    """One committed and applied reduction; the same on every member, but for `wire_bytes`.

    Attributes:
        outer_step: how many reductions are applied by now, this one included.
        fragment: which fragment it was; None if it was the whole model.
        tokens: of all contributors in the interval; 0: nobody had any, and nothing was changed.
        dropped: contributors that were left out because theirs was not finite.
        contributors: the peers that took part, in rank order; one with no tokens has no say.
        epoch, retries, wire_bytes: as in `Outcome`.
    """

    outer_step: int
    fragment: int | None
    tokens: int
    dropped: int
    contributors: tuple[Peer, ...]
    epoch: int
    retries: int
    wire_bytes: int
