"""What ranks compare of a call beside what the engine does, and how a mismatch reads then."""

from __future__ import annotations

import itertools

import pytest

from pccl.pytorch.meaning import MEANT, Meaning, as_called, tag_of

CALLS: list[list[Meaning | None]] = [
    [None],
    [("", (6,))],
    [("", (2, 3))],
    [("", (3, 2))],
    [("", ())],
    [("bor", (6,))],
    [("bxor", (6,))],
    [("premul_sum", (6,))],
    [("premul_sum", None)],
    [("", (6,)), ("", (6,))],
    [("", (6,)), ("", (2, 3))],
]


def test_calls_of_another_meaning_have_another_tag() -> None:
    for one, other in itertools.combinations(CALLS, 2):
        assert tag_of(one) != tag_of(other), (one, other)


def test_a_tag_is_none_of_those_of_later_operations_and_fits_the_wire() -> None:
    assert tag_of([None]) == tag_of([None, None]) == 0
    assert all(MEANT <= tag_of(call) < 1 << 32 for call in CALLS[1:])


def test_sizes_of_1_make_no_other_shape() -> None:
    assert tag_of([("", (1, 6))]) == tag_of([("", (6, 1))]) == tag_of([("", (6,))])
    assert tag_of([("", (1,))]) == tag_of([("", ())])


def test_a_tag_is_the_same_in_every_process_and_version() -> None:
    assert tag_of([("bor", (2, 3))]) == 0xA5B2D3E6


def posted(tag: int, one: str, other: str) -> str:
    return f"tag {tag}: rank 0 posted {one}, rank 1 posted {other}"


@pytest.mark.parametrize(
    ("said", "read"),
    [
        (posted(2, "a(f32[4])", "b(f32[4])"), posted(2, "a(f32[4])", "b(f32[4])")),
        (
            posted(tag_of([("", (4,))]), "a(f32[4])", "b(f32[4])") + "; all ranks must agree",
            "rank 0 posted a(f32[4]), rank 1 posted b(f32[4]); all ranks must agree",
        ),
        (
            posted(tag_of([("bor", (4,))]), "nothing", "all_gather(i32[4] per rank)")
            + "; "
            + posted(0, "all_gather(i32[4] per rank)", "nothing"),
            "rank 0 posted all_gather(i32[4] per rank), rank 1 posted all_reduce(bor, i32[4])",
        ),
        (
            posted(tag_of([("premul_sum", (4,))]), "all_reduce(sum, f32[4])", "nothing"),
            "rank 0 posted all_reduce(premul_sum, f32[4]), rank 1 posted nothing",
        ),
        (
            posted(tag_of([("", (2, 2))]), "nothing", "all_reduce(sum, f32[4])")
            + "; "
            + posted(tag_of([("", (4,))]), "all_reduce(sum, f32[4])", "nothing"),
            "rank 0 posted all_reduce(sum, f32[4]), rank 1 posted all_reduce(sum, f32[4]), of "
            "other shapes",
        ),
        ("tag 4294967295: who knows", "tag 4294967295: who knows"),
    ],
)
def test_a_mismatch_names_what_was_called(said: str, read: str) -> None:
    assert as_called(said) == read
