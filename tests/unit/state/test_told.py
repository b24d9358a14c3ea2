"""What members of a sync have heard is alike on all, whenever each has come to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pccl.outcome import Peer
from pccl.state.agreement import Record, Strategy, agree
from pccl.state.told import Table, Told, heard, words

HELD = Record(Strategy.POPULAR, True, True, b"l" * 16, b"r" * 32, 5, 1, 100)
PEERS = tuple(Peer(bytes([i]) * 16) for i in range(3))
TABLE = Table((HELD, replace(HELD, root=b"x" * 32), replace(HELD, root=b"y" * 32)), PEERS, 1)


def told(
    tried: tuple[int, ...],
    *,
    failed: tuple[int, ...] = (1, 2),
    torn: tuple[int, ...] = (),
    struck: tuple[int, ...] = (),
    gone: tuple[int, ...] = (),
) -> Told:
    """What comes of a round of three, of whom the first gives; `tried` as each counts."""
    there = [rank for rank in range(3) if rank not in gone]
    said = [
        words(
            TABLE,
            PEERS[rank],
            failed=rank in failed,
            torn=rank in torn,
            struck=[PEERS[i] for i in struck] if rank == 1 else [],
            tried=tried[rank],
        )
        for rank in there
    ]
    sums = np.array(said).sum(axis=0, dtype=np.uint64).astype(np.uint64)
    return heard(TABLE, agree(TABLE.rows), sums, [PEERS[rank] for rank in there])


def test_who_came_later_counts_as_who_was_there_longest() -> None:
    assert told((2, 2, 0)).tried == told((2, 0, 0)).tried == told((0, 0, 2)).tried == 3
    assert told((0, 0, 0)).tried == 1


def test_a_round_in_which_somebody_went_away_or_nobody_failed_is_none_in_vain() -> None:
    assert told((2, 1, 0), gone=(2,), failed=(1,)).tried == 2
    assert told((2, 2, 2), failed=()).tried == 2


def test_everybody_hears_who_failed_who_holds_parts_and_who_was_struck() -> None:
    found = told((0, 0, 0), failed=(1, 2), torn=(2,), struck=(0,))
    assert (found.failed, found.torn, found.struck) == ((1, 2), (2,), (PEERS[0],))
    assert found.all_there and not told((0, 0, 0), gone=(0,)).all_there


def test_who_was_passed_over_is_read_from_the_table() -> None:
    over = replace(HELD, strategy=Strategy.RECEIVE_ONLY, passed_over=True)
    assert Table((HELD, over, HELD), PEERS, 1).passed_over == (PEERS[1],)
