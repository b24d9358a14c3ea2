"""Decides whose state counts.  Pure: the same table gives the same answer on every member.

Who may give: with a `send_only` among them only those, else all that are not `receive_only`.  None
whose memory is torn, by a fetch or a restore that broke off, gives while there is another.

    some have been in agreement with this run   of them, the content that most hold: they have made
                                                their revisions by the same steps, so it is one
                                                content, and one member's claim moves nobody
    none has: the run begins                    the highest revision, so that nothing is lost which
                                                only one process still has; of it what most hold

Ties go to the higher revision, then to the lowest rank; so in a world of two that have been in
agreement, where neither is the minority.

Where what was elected does not come, somebody is left out, and the others go on: those who hold it,
if nobody at all has got it, they are fewer, and what the others go on from is no older and, in a
run that has begun, this run's; else those who have not got it (`at_fault`).

Invariant: the answer depends on what was committed alone.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from pccl.base.errors import RemoteError, UsageError
from pccl.state.layout import ENCODED_BYTES_MAX

_RECORD: Final = struct.Struct("<B????16s32sQQQ")
RECORD_BYTES: Final = _RECORD.size


class Strategy(IntEnum):
    """What a member wants of a sync."""

    POPULAR = 0  # most of us are right
    SEND_ONLY = 1  # this one is right
    RECEIVE_ONLY = 2  # the others are

    @classmethod
    def named(cls, name: str) -> Strategy:
        """Raises UsageError for an unknown name."""
        for one in cls:
            if one.name.lower() == name:
                return one
        known = ", ".join(repr(one.name.lower()) for one in cls)
        raise UsageError(f"strategy is one of {known}, not {name!r}")


@dataclass(frozen=True, slots=True)
class Record:
    """What one member says of its state; alike in size for all."""

    strategy: Strategy
    synced: bool
    looked: bool  # for checkpoints, if nobody is synced
    layout: bytes
    root: bytes
    revision: int
    lineage: int
    layout_bytes: int
    torn: bool = False  # holds parts of a revision only
    passed_over: bool = False  # it was elected in this sync, and nobody has got it

    def pack(self) -> bytes:
        return _RECORD.pack(
            self.strategy,
            self.synced,
            self.looked,
            self.torn,
            self.passed_over,
            self.layout,
            self.root,
            self.revision,
            self.lineage,
            self.layout_bytes,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Record:
        """Raises RemoteError for a record that no member of this version can have made."""
        strategy, synced, looked, torn, passed_over, *rest = _RECORD.unpack(data)
        layout, root, revision, lineage, size = rest
        if strategy not in list(Strategy) or size > ENCODED_BYTES_MAX:
            raise RemoteError(
                f"a member's record has strategy {strategy}, a layout of {size} bytes"
            )
        held = layout, root, revision, lineage, size
        return cls(Strategy(strategy), synced, looked, *held, torn, passed_over)

    @property
    def content(self) -> tuple[bytes, bytes, int, int]:
        return self.layout, self.root, self.revision, self.lineage


@dataclass(frozen=True, slots=True)
class Agreement:
    """Ranks are indices of the table."""

    chosen: int  # the lowest rank of those whose state counts
    sources: tuple[int, ...]
    receivers: tuple[int, ...]  # to be overwritten
    other_layout: tuple[int, ...]  # of the receivers, those whom nothing can be given
    disagreed: tuple[int, ...]  # of the receivers, those that were thought to be alike


def agree(table: Sequence[Record]) -> Agreement:
    """Returns whose state counts, and who is overwritten.

    Raises:
        UsageError: nobody may give, or those who only send differ; on all members alike.
    """
    whole = [rank for rank, r in enumerate(table) if not r.torn]
    senders, givers = _givers(table, whole)
    if not givers:
        senders, givers = _givers(table, range(len(table)))
    if not givers:
        raise UsageError("all members sync with receive_only; nobody gives its state")
    if len({table[rank].content for rank in senders}) > 1:
        raise UsageError(f"the states of those who sync with send_only differ: ranks {senders}")
    synced = [rank for rank in givers if table[rank].synced]
    candidates = synced or givers
    highest = max(table[rank].revision for rank in candidates)
    if not synced:
        candidates = [rank for rank in candidates if table[rank].revision == highest]
    votes = Counter(table[rank].content for rank in candidates)
    chosen = min(candidates, key=lambda r: (-votes[table[r].content], -table[r].revision, r))
    right = table[chosen]
    sources = tuple(rank for rank in givers if table[rank].content == right.content)
    receivers = tuple(rank for rank, r in enumerate(table) if r.content != right.content)
    return Agreement(
        chosen=chosen,
        sources=sources,
        receivers=receivers,
        other_layout=tuple(rank for rank in receivers if table[rank].layout != right.layout),
        disagreed=tuple(
            rank
            for rank in receivers
            if table[rank].synced and table[rank].revision >= right.revision
        ),
    )


def at_fault(
    table: Sequence[Record],
    agreement: Agreement,
    failed: Sequence[int],
    torn: Sequence[int] = (),
) -> tuple[int, ...]:
    """Returns whom the others go on without, where `failed` have tried often enough and not got the
    state; of these, `torn` will hold parts, and the memory of the others is whole or is put back.

    Those who hold it (`Agreement.sources`), if all have failed and are more than they are, or as
    many where the run begins and nobody is known to be right, and if nothing is lost with them: so
    a founder that nobody can reach stops nobody.  They have no voice from then on.  Else `failed`,
    who cannot be helped.  Nobody, if those who hold it have said that they are right, or if it is
    not this run's and nobody else may give, or nothing as new.
    """
    others = [rank for rank in agreement.receivers if rank not in agreement.other_layout]
    begins = not any(record.synced for record in table)
    if set(failed) != set(others) or len(failed) < len(agreement.sources) + (not begins):
        return tuple(failed)
    if any(table[rank].strategy is Strategy.SEND_ONLY for rank in agreement.sources):
        return ()
    if _nothing_is_lost(table, agreement, failed, torn):
        return agreement.sources
    return tuple(failed) if table[agreement.chosen].synced else ()


def _nothing_is_lost(
    table: Sequence[Record], agreement: Agreement, failed: Sequence[int], torn: Sequence[int]
) -> bool:
    """Says whether those who are left without the sources elect a whole state that is no older, and
    that of a member if the run has begun: strangers bring nothing of it."""
    left = [
        replace(record, torn=rank in torn)
        if rank in failed
        else replace(record, strategy=Strategy.RECEIVE_ONLY)
        if rank in agreement.sources
        else record
        for rank, record in enumerate(table)
        if rank not in agreement.other_layout
    ]
    try:
        after = left[agree(left).chosen]
    except UsageError:  # nobody else may give
        return False
    newest = after.revision >= table[agreement.chosen].revision
    ours = after.synced or not any(record.synced for record in table)
    return newest and not after.torn and ours


def withheld(table: Sequence[Record], agreement: Agreement) -> tuple[int, ...]:
    """Returns who was passed over and holds more than now counts, since whoever held as much is
    gone: it must not be written over."""
    right = table[agreement.chosen]
    return tuple(
        rank
        for rank, record in enumerate(table)
        if record.passed_over and not record.torn and record.revision > right.revision
    )


def _givers(table: Sequence[Record], ranks: Sequence[int]) -> tuple[list[int], list[int]]:
    """Of these ranks, those who only send, and all who give."""
    senders = [rank for rank in ranks if table[rank].strategy is Strategy.SEND_ONLY]
    others = [rank for rank in ranks if table[rank].strategy is not Strategy.RECEIVE_ONLY]
    return senders, senders or others
