"""Whom a newcomer believes: what one member claims decides nothing while others are right."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from pccl.state.election import Target, at_a_step, beside_the_run, confirmed

RIGHT = Target(9, 1, b"x")
LIE = Target(10**9, 1, b"lie")
RANKS = {bytes([name]): rank for rank, name in enumerate(b"abcdefgh")}


def at(revision: int, root: bytes = b"x", lineage: int = 1) -> Target:
    return Target(revision, lineage, root)


def test_a_revision_that_one_member_claims_is_neither_fetched_nor_waited_for() -> None:
    claims = {b"a": LIE, b"b": at(9), b"c": at(11)}
    assert beside_the_run(claims, RANKS).target == at(11)
    assert beside_the_run({b"a": LIE, b"b": RIGHT}, RANKS).target == RIGHT
    assert beside_the_run({b"a": at(0), b"b": RIGHT, b"c": RIGHT}, RANKS).target == RIGHT


def test_of_the_revision_that_most_have_reached_the_content_that_most_hold_is_fetched() -> None:
    claims = {b"a": at(9, b"y"), b"b": RIGHT, b"c": RIGHT, b"d": at(10), b"e": at(8)}
    found = beside_the_run(claims, RANKS)
    assert (found.target, found.holders, found.odd) == (RIGHT, (b"b", b"c"), (b"a",))


def test_at_one_step_most_are_right_and_every_other_one_is_named() -> None:
    claims = {b"a": LIE, b"b": RIGHT, b"c": RIGHT, b"d": at(9, b"x", lineage=2)}
    found = at_a_step(claims, RANKS)
    assert (found.target, found.holders, found.odd) == (RIGHT, (b"b", b"c"), (b"a", b"d"))


def test_of_two_that_differ_the_lower_rank_is_believed_and_none_is_called_a_liar() -> None:
    found = at_a_step({b"b": LIE, b"c": RIGHT}, RANKS)
    assert (found.target, found.odd, found.tied) == (LIE, (), (b"c",))
    found = at_a_step({b"b": LIE, b"c": RIGHT}, {b"c": 0, b"b": 1})
    assert (found.target, found.tied) == (RIGHT, (b"b",))


def test_one_of_several_is_not_believed_alone() -> None:
    assert confirmed([RIGHT], asked=1) and confirmed([RIGHT], asked=2)
    assert not confirmed([RIGHT], asked=3) and not confirmed([RIGHT, LIE], asked=3)
    assert confirmed([RIGHT, LIE, RIGHT], asked=3) and not confirmed([], asked=1)


@given(
    st.lists(st.integers(5, 9), min_size=2, max_size=6),
    st.lists(st.tuples(st.integers(0, 10**9), st.sampled_from([b"x", b"l"])), max_size=5),
    st.randoms(),
)
def test_a_minority_of_liars_moves_nobody_beyond_what_right_ones_hold(
    right: list[int], lies: list[tuple[int, bytes]], dice: Random
) -> None:
    lies = lies[: len(right) - 1]
    names = [bytes([name]) for name in b"abcdefghijklmnop"[: len(right) + len(lies)]]
    dice.shuffle(names)
    honest, liars = names[: len(right)], names[len(right) :]
    claims = {peer: at(r) for peer, r in zip(honest, right, strict=True)}
    claims |= {peer: at(r, root) for peer, (r, root) in zip(liars, lies, strict=True)}
    ranks = {peer: rank for rank, peer in enumerate(sorted(claims))}
    assert min(right) <= beside_the_run(claims, ranks).target.revision <= max(right)
    same = {peer: (RIGHT if peer in honest else claims[peer]) for peer in claims}
    found = at_a_step(same, ranks)
    assert found.target == RIGHT and set(honest) <= set(found.holders)
    assert not set(found.odd) & set(honest)
