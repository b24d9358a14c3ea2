"""What the members of a sync tell each other, as all of them heard it, and what comes of it.

Invariant: of the same committed steps every member makes the same table and the same `Told`,
however late it has come to this sync.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pccl.outcome import Peer
from pccl.state.agreement import Agreement, Record
from pccl.state.restore import Restored

_FAILED, _TORN, _STRUCK, _TRIED = range(4)  # blocks of what is summed


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What a sync has found and done; alike on all members but for
    `byte_count`, `tensors` and `lost`.

    Attributes:
        revision: of the agreed state.
        root: of its hash tree.
        sources: the members that held it.
        received: the members that did not, and were brought to it.
        repaired: of these, members whose copy had changed though it was thought to be alike.
        struck: sources that sent wrong bytes to somebody, and were not asked any more.
        byte_count: bytes of contents that came here.
        tensors: the names of what was changed here.
        lost: sources that went silent or away while this peer fetched, and how.
        passed_over: members whose state was elected first, and could not be had; of those that are
            members still.
        restored: what was found on the disks, if nobody held the run's state.
    """

    revision: int
    root: bytes
    sources: tuple[Peer, ...]
    received: tuple[Peer, ...]
    repaired: tuple[Peer, ...]
    struck: tuple[Peer, ...] = ()
    byte_count: int = 0
    tensors: tuple[str, ...] = ()
    lost: tuple[tuple[Peer, str], ...] = ()
    restored: Restored | None = None
    passed_over: tuple[Peer, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """The committed answers of one survey."""

    rows: tuple[Record, ...]
    peers: tuple[Peer, ...]
    history: int  # a number for a history that begins here

    @property
    def passed_over(self) -> tuple[Peer, ...]:
        return tuple(p for p, row in zip(self.peers, self.rows, strict=True) if row.passed_over)


@dataclass(frozen=True, slots=True)
class Told:
    """The committed answers of all to how a round went."""

    failed: tuple[int, ...]  # ranks that have not got the state
    torn: tuple[int, ...]  # of these, ranks that hold parts of it since
    struck: tuple[Peer, ...]
    tried: int  # rounds in which what was elected did not come, as who was there longest counts
    all_there: bool  # nobody of the table is gone


def words(
    table: Table, me: Peer, *, failed: bool, torn: bool, struck: Collection[Peer], tried: int
) -> npt.NDArray[np.uint64]:
    """Returns what this peer says of a round: summed with what all others say, it is `heard`.

    Args:
        tried: rounds before this one in which the same did not come, as far as this peer knows.
    """
    said = np.zeros((4, len(table.peers)), np.uint64)
    for rank, peer in enumerate(table.peers):
        said[_STRUCK, rank] = peer in struck
        if peer == me:
            said[_FAILED, rank], said[_TORN, rank], said[_TRIED, rank] = failed, torn, tried
    return said


def heard(
    table: Table, agreement: Agreement, sums: npt.NDArray[np.uint64], there: Sequence[Peer]
) -> Told:
    """Returns what all have said; `there` are those who did."""
    ranks = range(len(table.peers))
    failed = tuple(rank for rank in ranks if sums[_FAILED, rank])
    all_there = all(table.peers[r] in there or r in agreement.other_layout for r in ranks)
    # Where somebody is gone it may have been the trouble: that round does not count.
    return Told(
        failed=failed,
        torn=tuple(rank for rank in ranks if sums[_TORN, rank]),
        struck=tuple(table.peers[rank] for rank in ranks if sums[_STRUCK, rank]),
        tried=int(sums[_TRIED].max()) + (bool(failed) and all_there),
        all_there=all_there,
    )
