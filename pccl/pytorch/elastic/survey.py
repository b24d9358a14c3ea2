"""What members tell each other at an entry, and what follows from it.  Pure.

Every member sends a Report to all; all decide from the same reports, so all decide alike.

    nobody is synced          the run is new, or all have come in again: as below, among all
    some are                  who holds the latest step is right; among those the digest most of
                              them hold, of equally many the one with the first source
    everybody else            is healed by the first source that is right

The first source has the lowest rank, or where replicas have several processes the lowest replica:
then each part of a replica is healed by the same one.

Invariant: `decide` names a source if and only if somebody is to be healed.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

VERSION: Final = 1
_LAYOUT: Final = struct.Struct("<HHIQ16s8s")  # version, flags, parts, step, digest, replica
REPORT_BYTES: Final = 64
DIGEST_BYTES: Final = 16
_SYNCED: Final = 1
_CHECKED: Final = 2
assert _LAYOUT.size <= REPORT_BYTES


class UnknownReport(ValueError):
    """A member speaks another version of this exchange."""


@dataclass(frozen=True, slots=True)
class Report:
    """One member's word.

    Attributes:
        synced: it holds the run's state, as of `step`.
        step: committed training steps in that state.
        digest: of that state, 16 bytes; empty where digests are not compared.
        replica: 8 bytes that all processes of one replica share.
        parts: how many processes one replica has.
    """

    synced: bool
    step: int = 0
    digest: bytes = b""
    replica: bytes = bytes(8)
    parts: int = 1

    def pack(self) -> bytes:
        flags = (_SYNCED if self.synced else 0) | (_CHECKED if self.digest else 0)
        return _LAYOUT.pack(VERSION, flags, self.parts, self.step, self.digest, self.replica).ljust(
            REPORT_BYTES, b"\0"
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises UnknownReport."""
        version, flags, parts, step, digest, replica = _LAYOUT.unpack_from(data)
        if version != VERSION:
            raise UnknownReport(f"a member sends reports of version {version}, not {VERSION}")
        return cls(bool(flags & _SYNCED), step, digest if flags & _CHECKED else b"", replica, parts)


@dataclass(frozen=True, slots=True)
class Decision:
    """What all members do next.

    Attributes:
        step: committed steps in the state that counts.
        source: the rank that gives its state, None if nobody needs one.
        healed: the ranks that take it.
        diverged: those of them that held another state of the same step.
    """

    step: int
    source: int | None
    healed: tuple[int, ...]
    diverged: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, step: int, source: int, healed: tuple[int, ...], diverged: tuple[int, ...] = ()
    ) -> Self:
        return cls(step, source if healed else None, healed, diverged)


def decide(reports: Sequence[Report]) -> Decision:
    """Returns what follows from all members' reports, in rank order (at least one)."""

    def first(ranks: Iterable[int]) -> int:
        return min(ranks, key=lambda r: (reports[r].replica if reports[r].parts > 1 else b"", r))

    synced = [rank for rank, report in enumerate(reports) if report.synced]
    latest = max(reports[rank].step for rank in synced or range(len(reports)))
    if not synced:
        source = first(rank for rank, report in enumerate(reports) if report.step == latest)
        return Decision.of(latest, source, tuple(r for r in range(len(reports)) if r != source))
    holders = [rank for rank in synced if reports[rank].step == latest]
    votes = Counter(reports[rank].digest for rank in holders)
    most = max(votes.values())
    majority = [rank for rank in holders if votes[reports[rank].digest] == most]
    right = reports[first(majority)].digest
    holds = {rank for rank in holders if reports[rank].digest == right}
    healed = tuple(rank for rank in range(len(reports)) if rank not in holds)
    diverged = tuple(rank for rank in holders if rank not in holds)
    return Decision.of(latest, first(holds), healed, diverged)


def right_form(reports: Sequence[Report | None]) -> int:
    """Returns how many processes a replica has in this run, going by those that were here first.

    Args:
        reports: None where a member speaks another version of this exchange.
    """
    known = [report for report in reports if report is not None]
    return next((r.parts for r in known if r.synced), known[0].parts if known else 1)


def complete(groups: Sequence[int], parts: int) -> bool:
    """Says whether every replica has all of its processes in.

    Args:
        groups: the peer group of each member of the view, of all groups.
        parts: processes per replica, which are the peer groups 0 to parts - 1.
    """
    if parts <= 1:
        return True
    counts = Counter(groups)
    return len({counts[part] for part in range(parts)}) == 1
