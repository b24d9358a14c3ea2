"""Refusals in an audit log: bounded bytes, lines for everybody, none that is not counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pccl.membership.refusal_pace import (
    BYTES_BURST,
    BYTES_PER_S,
    SOURCE_BURST,
    SOURCES_MAX,
    SUMMED_UP_AFTER_S,
    RefusalPace,
)

LINE = 200


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 4000), st.floats(0, 5), st.booleans()),
        max_size=300,
    )
)
def test_every_refusal_is_granted_or_counted_once_and_bytes_are_bounded(
    asked: list[tuple[int, int, float, bool]],
) -> None:
    pace, now_s, granted, told, spent = RefusalPace(0.0), 0.0, 0, 0, 0
    for source, size, after_s, looks in asked:
        now_s += after_s
        if looks and (summed := pace.due(now_s)) is not None:
            told += summed.count
        before = pace.grant(f"10.0.0.{source}", size, now_s)
        if before is not None:
            granted, told, spent = granted + 1, told + before, spent + size
        assert spent <= BYTES_BURST + now_s * BYTES_PER_S + 1e-6
    rest = pace.rest()
    told += rest.count if rest is not None else 0
    assert granted + told == len(asked) and pace.rest() is None


def test_one_source_leaves_lines_for_others() -> None:
    pace = RefusalPace(0.0)
    lines = sum(pace.grant("10.0.0.1", LINE, 0.0) is not None for _ in range(10_000))
    assert lines == SOURCE_BURST
    assert pace.grant("10.0.0.2", LINE, 0.0) == 0
    assert pace.grant("10.0.0.1", LINE, 6.5) == 10_000 - lines


def test_a_sum_is_due_a_minute_after_the_first_that_it_tells_and_names_the_busiest() -> None:
    pace = RefusalPace(0.0)
    for source, count in (("10.0.0.1", 30), ("10.0.0.2", 50)):
        for _ in range(count):
            pace.grant(source, LINE, 10.0)
    assert pace.due(9.0 + SUMMED_UP_AFTER_S) is None
    summed = pace.due(10.0 + SUMMED_UP_AFTER_S)
    assert summed is not None and (summed.count, summed.sources) == (40, 2)
    assert (summed.busiest, summed.busiest_count) == ("10.0.0.2", 30)
    assert pace.due(1000.0) is None


def test_sources_beyond_the_number_that_is_remembered_are_still_counted() -> None:
    pace, crowd = RefusalPace(0.0), 4 * SOURCES_MAX
    granted = sum(pace.grant(f"host-{n}", LINE, 0.0) is not None for n in range(crowd))
    summed = pace.rest()
    assert summed is not None and summed.count + granted == crowd
    assert summed.sources <= SOURCES_MAX + 1 and summed.busiest == ""
