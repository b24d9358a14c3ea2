"""Whose state counts: the same answer from the same table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.base.errors import RemoteError, UsageError
from pccl.state.agreement import RECORD_BYTES, Record, Strategy, agree, at_fault, withheld

PLAIN = Record(Strategy.POPULAR, True, False, b"l" * 16, b"r" * 32, 5, 1, 100)
OTHER = replace(PLAIN, root=b"x" * 32)
RECORDS = st.builds(
    Record,
    st.sampled_from(list(Strategy)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([b"l" * 16, b"m" * 16]),
    st.sampled_from([b"r" * 32, b"x" * 32, b"y" * 32]),
    st.integers(0, 3),
    st.integers(0, 1),
    st.integers(0, 9),
    st.booleans(),
    st.booleans(),
)


@given(RECORDS)
def test_a_record_survives_its_way(record: Record) -> None:
    assert len(record.pack()) == RECORD_BYTES
    assert Record.unpack(record.pack()) == record


def test_most_count_and_the_minority_is_repaired_and_named() -> None:
    found = agree([PLAIN, OTHER, PLAIN])
    assert (found.chosen, found.sources, found.receivers) == (0, (0, 2), (1,))
    assert found.disagreed == (1,)


def test_among_as_many_the_lowest_rank_counts() -> None:
    assert agree([OTHER, PLAIN]).chosen == 0
    assert agree([PLAIN, OTHER, OTHER, PLAIN]).sources == (0, 3)


def test_of_those_in_agreement_most_count_whatever_revision_one_claims_and_it_is_named() -> None:
    liar = replace(OTHER, revision=10**9)
    found = agree([liar, PLAIN, PLAIN])
    assert found.sources == (1, 2) and found.receivers == found.disagreed == (0,)
    late = replace(OTHER, revision=4)
    found = agree([late, PLAIN, PLAIN])
    assert found.receivers == (0,) and found.disagreed == (), "it has missed a step, and is no liar"


def test_of_two_in_agreement_neither_is_the_minority_and_the_higher_revision_counts() -> None:
    assert agree([PLAIN, replace(OTHER, revision=6)]).chosen == 1
    assert agree([OTHER, PLAIN]).chosen == 0


def test_where_a_run_begins_the_highest_revision_counts_however_few_hold_it() -> None:
    before = replace(PLAIN, synced=False)
    newer = replace(before, root=b"x" * 32, revision=6)
    found = agree([before, before, newer])
    assert found.sources == (2,) and found.receivers == (0, 1) and found.disagreed == ()


def test_a_stranger_with_a_high_revision_does_not_count_where_somebody_is_in_agreement() -> None:
    stranger = replace(OTHER, synced=False, revision=99)
    assert agree([stranger, PLAIN]).chosen == 1
    assert agree([stranger, replace(PLAIN, synced=False)]).chosen == 0


def test_who_only_receives_does_not_count_and_who_only_sends_counts_alone() -> None:
    receiver = replace(OTHER, strategy=Strategy.RECEIVE_ONLY)
    sender = replace(OTHER, strategy=Strategy.SEND_ONLY)
    assert agree([receiver, receiver, PLAIN]).chosen == 2
    assert agree([PLAIN, PLAIN, sender]).sources == (2,)
    with pytest.raises(UsageError, match="nobody gives"):
        agree([receiver, receiver])
    with pytest.raises(UsageError, match="differ"):
        agree([sender, replace(PLAIN, strategy=Strategy.SEND_ONLY)])


def test_a_torn_state_counts_only_where_all_are_torn() -> None:
    torn = replace(OTHER, revision=9, torn=True)
    founder = replace(PLAIN, synced=False, revision=0)
    assert agree([torn, torn, founder]).sources == (2,)
    assert agree([replace(torn, strategy=Strategy.SEND_ONLY), founder]).chosen == 1
    assert agree([torn, replace(founder, torn=True)]).chosen == 0


def test_a_record_of_impossible_numbers_is_refused_before_anybody_makes_room_for_it() -> None:
    with pytest.raises(RemoteError, match="layout"):
        Record.unpack(replace(PLAIN, layout_bytes=1 << 60).pack())
    with pytest.raises(RemoteError, match="strategy 9"):
        Record.unpack(b"\x09" + PLAIN.pack()[1:])


def test_those_with_another_layout_can_be_given_nothing() -> None:
    odd = replace(PLAIN, layout=b"m" * 16)
    found = agree([PLAIN, odd, PLAIN])
    assert found.other_layout == (1,) and found.receivers == (1,)


@given(st.lists(RECORDS, min_size=1, max_size=8))
def test_everybody_gives_gets_or_has_it_already(table: list[Record]) -> None:
    try:
        found = agree(table)
    except UsageError:
        return
    right = table[found.chosen].content
    for rank, record in enumerate(table):
        assert (rank in found.receivers) == (record.content != right)
        if record.strategy is Strategy.SEND_ONLY and not any(r.torn for r in table):
            assert rank in found.sources and rank not in found.receivers
        if record.strategy is Strategy.RECEIVE_ONLY:
            assert rank not in found.sources
    assert found == agree(list(table))


def founder(revision: int, root: bytes = b"r", **named: Any) -> Record:
    return replace(PLAIN, synced=False, revision=revision, root=root.ljust(32), **named)


def fault(table: list[Record], *failed: int) -> tuple[int, ...]:
    return at_fault(table, agree(table), failed)


def test_a_founder_that_nobody_can_fetch_from_is_left_out_and_not_those_who_tried() -> None:
    assert fault([founder(7), founder(7, b"x")], 1) == (0,), "of two, who does not give"
    assert fault([founder(0), founder(0, b"x"), founder(0, b"y")], 1, 2) == (0,)


def test_who_alone_has_not_got_what_others_hold_is_left_out_itself() -> None:
    assert fault([founder(7), founder(0, b"x"), founder(0, b"y")], 2) == (2,), "the other has it"
    assert fault([founder(7), founder(7), founder(0, b"x")], 2) == (2,), "two give, and one tries"


def test_among_members_of_a_run_more_must_fail_than_hold_it_before_they_count_no_more() -> None:
    assert fault([PLAIN, OTHER], 1) == (1,)
    third = replace(PLAIN, root=b"y" * 32)
    assert fault([PLAIN, OTHER, third], 1, 2) == (0,)


def test_of_founders_none_is_passed_over_who_holds_a_newer_state_than_all_others() -> None:
    assert fault([founder(7), founder(0, b"x")], 1) == ()
    assert fault([founder(7), founder(6, b"x"), founder(0, b"y")], 1, 2) == ()
    assert fault([founder(7), founder(7, b"x"), founder(0, b"y")], 1, 2) == (0,)


def test_what_a_run_has_learnt_is_not_given_up_for_strangers_that_cannot_fetch_it() -> None:
    strangers = [founder(0, b"x"), founder(0, b"x")]
    assert fault([PLAIN, *strangers], 1, 2) == (1, 2)
    assert fault([PLAIN, *(replace(one, revision=9) for one in strangers)], 1, 2) == (1, 2)
    assert fault([PLAIN, OTHER, *strangers], 1, 2, 3) == (0,), "another member has as much"
    behind = replace(OTHER, revision=4)
    assert fault([PLAIN, behind, *strangers], 1, 2, 3) == (1, 2, 3), "this one has not"
    listener = replace(OTHER, strategy=Strategy.RECEIVE_ONLY)
    assert fault([PLAIN, listener, strangers[0]], 1, 2) == (1, 2)
    assert fault([founder(0), listener], 1) == (1,) and fault([*strangers, listener], 2) == (2,)
    assert fault([founder(0), listener, listener], 1, 2) == (), "a member does not leave for those"


def test_whose_memory_holds_parts_since_is_nobodys_hope() -> None:
    table = [PLAIN, OTHER, replace(PLAIN, root=b"y" * 32)]
    found = agree(table)
    assert at_fault(table, found, (1, 2), torn=(1,)) == (0,), "one is whole"
    assert at_fault(table, found, (1, 2), torn=(1, 2)) == (1, 2)
    parts = [founder(0), founder(0, b"x", torn=True), founder(0, b"y", torn=True)]
    assert fault(parts, 1, 2) == (0,), "they are put back"


def test_who_was_passed_over_is_not_written_over_with_less() -> None:
    over = replace(PLAIN, strategy=Strategy.RECEIVE_ONLY, passed_over=True)
    for revision, newer in ((4, (0,)), (5, ()), (6, ())):
        table = [over, replace(OTHER, revision=revision)]
        assert withheld(table, agree(table)) == newer
    table = [replace(over, torn=True), replace(OTHER, revision=4)]
    assert withheld(table, agree(table)) == (), "parts are worth nothing"


def test_nobody_is_left_out_where_nobody_else_may_give() -> None:
    receiver = founder(0, b"x", strategy=Strategy.RECEIVE_ONLY)
    assert fault([founder(0), receiver], 1) == ()
    sender = founder(0, strategy=Strategy.SEND_ONLY)
    assert fault([sender, founder(0, b"x")], 1) == ()
    assert fault([sender, founder(0, b"x"), founder(0, b"y")], 1) == (1,), "the other has got it"


@given(st.lists(RECORDS, min_size=2, max_size=8), st.data())
def test_whoever_is_left_out_somebody_stays(table: list[Record], data: st.DataObject) -> None:
    try:
        found = agree(table)
    except UsageError:
        return
    others = [rank for rank in found.receivers if rank not in found.other_layout]
    if not others:
        return
    failed = data.draw(st.lists(st.sampled_from(others), min_size=1, unique=True))
    torn = data.draw(st.lists(st.sampled_from(failed), unique=True))
    out = at_fault(table, found, failed, torn)
    if out == found.sources:
        left = [
            replace(record, strategy=Strategy.RECEIVE_ONLY)
            if rank in out
            else replace(record, torn=rank in torn)
            for rank, record in enumerate(table)
            if rank not in found.other_layout
        ]
        after = left[agree(left).chosen]
        assert after.revision >= table[found.chosen].revision and not after.torn
        assert after.synced or not any(record.synced for record in table)
    assert set(out) in (set(), set(failed), set(found.sources)) and set(out) != set(
        range(len(table))
    )
