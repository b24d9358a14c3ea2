"""From what members say at an entry to who heals whom."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.pytorch.elastic.survey import (
    REPORT_BYTES,
    Decision,
    Report,
    UnknownReport,
    complete,
    decide,
    right_form,
)

A, B, C = (bytes([n]) * 16 for n in range(1, 4))


def synced(step: int, digest: bytes = b"") -> Report:
    return Report(True, step, digest)


NEW = Report(False)

reports = st.builds(
    Report,
    synced=st.booleans(),
    step=st.integers(0, 3),
    digest=st.sampled_from([b"", A, B, C]),
)


@given(
    st.builds(
        Report,
        st.booleans(),
        st.integers(0, (1 << 64) - 1),
        st.one_of(st.just(b""), st.binary(min_size=16, max_size=16)),
        st.binary(min_size=8, max_size=8),
        st.integers(1, 1 << 20),
    )
)
def test_a_report_comes_back_as_it_was_sent(report: Report) -> None:
    packed = report.pack()
    assert len(packed) == REPORT_BYTES
    assert Report.unpack(packed) == report


def test_a_report_of_another_version_is_refused() -> None:
    with pytest.raises(UnknownReport, match="version 2"):
        Report.unpack((2).to_bytes(2, "little") + bytes(REPORT_BYTES - 2))


def test_in_a_new_run_everybody_takes_the_state_of_rank_0() -> None:
    assert decide([NEW, NEW, NEW]) == Decision(0, 0, (1, 2))


def test_where_all_have_come_in_again_the_latest_step_wins_over_a_fresh_process() -> None:
    found = decide([NEW, Report(False, 499), Report(False, 500), Report(False, 500)])
    assert found == Decision(500, 2, (0, 1, 3))


def test_all_parts_of_a_replica_are_healed_by_the_same_replica() -> None:
    """The peer groups may have the replicas in different orders."""
    first, second = (Report(True, 5, b"", replica=name * 8, parts=2) for name in (b"a", b"b"))
    new = Report(False, 0, b"", replica=b"0" * 8, parts=2)
    assert decide([first, second, new]).source == 0
    assert decide([second, new, first]).source == 2


def test_who_was_here_first_says_how_many_processes_a_replica_has() -> None:
    one, two = Report(True, 3, parts=1), Report(False, 0, parts=2)
    assert right_form([two, one]) == 1
    assert right_form([None, two]) == 2
    assert right_form([None]) == 1


def test_nobody_is_healed_where_all_hold_the_same() -> None:
    assert decide([synced(7, A), synced(7, A)]) == Decision(7, None, ())
    assert decide([NEW]).source is None


def test_joiners_take_the_state_of_the_first_member_that_has_it() -> None:
    assert decide([NEW, synced(7, A), NEW, synced(7, A)]) == Decision(7, 1, (0, 2))


def test_who_is_behind_is_healed() -> None:
    assert decide([synced(6, B), synced(7, A)]) == Decision(7, 1, (0,))


def test_who_differs_from_most_is_healed_and_said_to_have_diverged() -> None:
    found = decide([synced(7, B), synced(7, A), synced(7, A)])
    assert found == Decision(7, 1, (0,), diverged=(0,))


def test_of_equally_many_the_lowest_rank_is_right() -> None:
    assert decide([synced(7, B), synced(7, A)]) == Decision(7, 0, (1,), diverged=(1,))


@given(st.lists(reports, min_size=1, max_size=6))
def test_after_healing_all_hold_one_state_that_somebody_held(said: list[Report]) -> None:
    found = decide(said)
    assert (found.source is None) == (not found.healed)
    assert found.source not in found.healed
    assert set(found.diverged) <= set(found.healed)
    if found.source is None:
        return
    source = said[found.source]
    right = [rank for rank in range(len(said)) if rank not in found.healed]
    assert found.source == min(right)
    if source.synced:
        assert all(said[rank] == source or said[rank].synced for rank in right)
        assert {said[rank].digest for rank in right} == {source.digest}
        assert found.step == source.step == max(r.step for r in said if r.synced)
    else:
        assert not any(report.synced for report in said)
        assert found.step == source.step == max(report.step for report in said)


def test_a_replica_is_complete_when_all_its_processes_are_in() -> None:
    assert complete([0, 0, 0], 1)
    assert complete([0, 0, 1, 1], 2)
    assert not complete([0, 0, 1], 2)
    assert not complete([0, 0], 2)
