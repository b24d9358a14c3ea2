"""When newcomers whose first calls differ are told so."""

from __future__ import annotations

from pccl.apart import APART_S, HELD_S, Apart

WHY = "this process waits at 'a', and peer 0a1b2c3d.2 at 'b'"


def test_it_is_an_error_once_it_has_been_so_for_a_while() -> None:
    apart = Apart()
    assert apart.look(False, "", 100.0) is None
    assert apart.look(True, WHY, 103.0) is None
    assert apart.look(True, "something newer", 103.0 + APART_S - 0.1) is None
    text = apart.look(True, "something newer", 103.0 + APART_S)
    assert text is not None and text.startswith(WHY) and "agree on all peers" in text


def test_who_comes_to_the_same_call_a_little_later_has_differed_from_nobody() -> None:
    apart = Apart()
    apart.look(True, WHY, 100.0)
    assert apart.look(False, "", 100.0 + HELD_S - 0.1) is None
    assert apart.look(False, "", 100.0 + 2 * APART_S) is None
    apart.look(True, WHY, 200.0)  # counts from now on
    assert apart.look(True, WHY, 202.9) is None and apart.look(True, WHY, 203.1)


def test_the_end_of_whoever_was_told_first_leaves_nobody_waiting() -> None:
    apart = Apart()
    apart.look(True, WHY, 100.0)
    apart.look(True, WHY, 100.0 + HELD_S)
    assert apart.look(False, "", 100.0 + HELD_S + 0.5) is None
    assert apart.look(False, "", 100.0 + APART_S)
